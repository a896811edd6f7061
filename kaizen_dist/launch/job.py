"""RUN/slurm: everything that the jobs of a run need, unaffected by later edits.

RUN/slurm/job.json        the request, enough to submit it again
RUN/slurm/config.yaml     the configuration, as resolved
RUN/slurm/code/           a copy of the package
RUN/slurm/attempts.jsonl  (attempts.py)
RUN/slurm/logs/           train-JOB.log of the ranks, follow.log, and submitit's files
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from secrets import token_hex

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import kaizen_dist
from kaizen_dist.common.errors import DataError, WriteError
from kaizen_dist.common.files import atomic_write, is_leftover, make_folder, read_bytes, writing
from kaizen_dist.common.inventory import reasons
from kaizen_dist.common.run_layout import CONFIG, SLURM
from kaizen_dist.config import Config
from kaizen_dist.launch.resources import Resources
from kaizen_dist.launch.slurm import SlurmJob

FILE = "job.json"
FOLLOW_LOG = "follow.log"
_PACKAGE = Path(kaizen_dist.__file__).parent
_SUBMITIT_LINK = re.compile(r"\.submission_file_[0-9a-f]{32}\.sh")
"""Links that submitit leaves, under names that nothing is written to again."""


def log_of(run: Path, number: str) -> Path:
    """Log of the ranks of a run's job."""
    return run / SLURM / "logs" / f"train-{number}.log"


def watchers(root: Path, jobs: Iterable[SlurmJob]) -> list[SlurmJob]:
    """Of these jobs those in the queue that look for new tasks of a run (its folder as Slurm knows
    it), by their working directory."""
    return [job for job in jobs if not job.over and job.folder == str(root / SLURM)]


class SubmittedRun(BaseModel):
    """A run as it was submitted; `root` is its folder, absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    stream: str
    tasks: int = Field(ge=1, le=1_000_000)
    """Of the stream."""
    chain: bool
    """One job a task, or one for all."""
    until: int | None = Field(None, ge=1)
    """Learn so many tasks; null: all."""
    follow: int | None = Field(None, ge=1)
    """Seconds between two looks for new tasks of the stream; null: nothing looks."""
    resources: Resources

    @property
    def to_learn(self) -> int:
        """How many tasks the run is to have learnt."""
        return self.tasks if self.until is None else min(self.until, self.tasks)

    @property
    def folder(self) -> Path:
        """RUN/slurm"""
        return self.root / SLURM

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def code(self) -> Path:
        """Working directory of the jobs that train: it holds the copy of the package."""
        return self.folder / "code"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def follow_log(self) -> Path:
        """Of the jobs that look for new tasks."""
        return self.logs / FOLLOW_LOG

    @property
    def python(self) -> str:
        """The interpreter on the nodes."""
        return self.resources.python or sys.executable

    def write(self, config: Config) -> None:
        """Leave everything that a job needs in RUN/slurm. Raises WriteError."""
        for folder in (self.folder, self.code, self.logs):
            if folder.is_symlink():
                raise WriteError(
                    f"cannot write {folder}: it is a link; remove it, or name another --out"
                )
            make_folder(folder)
        _refuse_planted(self.logs)
        _copy_code(self.code)
        header = f"# kaizen-dist train {self.config} --stream {self.stream} --out {self.root}\n"
        atomic_write(self.config, (header + config.to_yaml()).encode())
        self.save()

    def save(self) -> None:
        """Write the request. Raises WriteError."""
        content = json.dumps(self.model_dump(mode="json"), indent=1)
        atomic_write(self.folder / FILE, content.encode())

    @classmethod
    def read(cls, root: Path) -> "SubmittedRun":
        """The run that was submitted in this folder, wherever the folder was then.

        Raises:
            DataError: if there is none, or its file cannot be read.
        """
        path = root / SLURM / FILE
        try:
            job = cls.model_validate_json(read_bytes(path, follow=False), strict=True)
        except (OSError, ValidationError) as error:
            raise DataError(f"{path}: {reasons(error)}; submit the run again") from None
        return job.model_copy(update={"root": root})

    def train(self, task: int | None) -> list[str]:
        """The command of every rank; in a chain up to the end of the job's task."""
        until = self.until if task is None else task + 1
        arguments = ["--stream", self.stream, "--out", str(self.root), "--no-summary"]
        arguments += [] if until is None else ["--until", str(until)]
        return self.rank("train", str(self.config), *arguments)

    def rank(self, *arguments: str) -> list[str]:
        """`kaizen-dist ARGUMENTS` as a rank runs it."""
        python = self.python if self.resources.container is None else "python3"
        return [python, "-u", "-m", "kaizen_dist", *arguments]

    def srun(
        self,
        rank: Sequence[str],
        log: Path,
        output: Path | None = None,
        nodes: int | None = None,
    ) -> list[str]:
        """srun's arguments that start a command as every rank, one task each.

        Standard error goes to `log`, standard output to `output` (None: to `log`). `nodes`: the
        first nodes of the job, by default all.
        """
        asked = self.resources
        nodes = nodes or asked.nodes
        return [
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={nodes * asked.ranks}",
            f"--ntasks-per-node={asked.ranks}",
            # Since Slurm 22.05 srun does not take it from the job.
            f"--cpus-per-task={asked.cpus_per_task}",
            # When one rank is lost, the others end by themselves and name it; on a signal all exit
            # with the same code, some a moment later than others.
            "--kill-on-bad-exit=0",
            "--unbuffered",
            "--open-mode=append",
            f"--output={output or log}",
            f"--error={log}",
            *asked.srun_args,
            *self._container(),
            *rank,
        ]

    def _container(self) -> list[str]:
        asked = self.resources
        if asked.container is None:
            return []
        stream = [] if "://" in self.stream else [self.stream]
        folders = [str(self.root), *stream, *asked.mounts]
        mounts = ",".join(f"{folder}:{folder}" for folder in folders)
        if asked.container_runtime == "pyxis":
            image = f"--container-image={asked.container}"
            return [image, f"--container-mounts={mounts}", f"--container-workdir={self.code}"]
        gpus = ["--nv"] if asked.gpus_per_node else []
        return ["apptainer", "exec", *gpus, "--bind", mounts, asked.container]


def _refuse_planted(logs: Path) -> None:
    """Refuse a link or a pipe among the logs: Slurm would follow the one and wait for the other.

    Raises:
        WriteError: naming it.
    """
    for path in logs.iterdir():
        if _SUBMITIT_LINK.fullmatch(path.name):
            continue
        if path.is_symlink() or not path.is_file():
            raise WriteError(f"cannot write into {logs}: {path.name} is no file; remove it")


def _copy_code(code: Path) -> None:
    """Replace an earlier copy of the package by one of the package that runs."""
    target = code / _PACKAGE.name
    temporary = code / f".{target.name}.{token_hex(8)}.tmp"
    with writing(target):
        if target.is_symlink():
            target.unlink()
        if target.exists() and _PACKAGE.samefile(target):
            return  # a job that submits its successor runs the copy itself
        for leftover in filter(is_leftover, code.glob(".*")):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(_PACKAGE, temporary, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
