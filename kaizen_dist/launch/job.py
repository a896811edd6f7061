"""What a job on the cluster runs: RUN/slurm, which no later edit changes.

RUN/slurm/job.json        what was asked for, enough to submit it again
RUN/slurm/config.yaml     the configuration, as resolved
RUN/slurm/code/           a copy of the package
RUN/slurm/attempts.jsonl  (ledger.py)
RUN/slurm/logs/           train-JOB.log of the ranks, and submitit's files
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import kaizen_dist
from kaizen_dist.common.errors import DataError, WriteError
from kaizen_dist.common.files import (
    atomic_write,
    cannot_write,
    is_leftover,
    make_folder,
    read_bytes,
)
from kaizen_dist.common.run_layout import CONFIG, SLURM
from kaizen_dist.config import Config
from kaizen_dist.config.loading import explained
from kaizen_dist.launch.resources import Resources

FILE = "job.json"
_PACKAGE = Path(kaizen_dist.__file__).parent
_SUBMITITS = re.compile(r"\.submission_file_[0-9a-f]{32}\.sh")
"""Links that submitit leaves, under names that nothing is written to again."""


def code_of(root: Path) -> Path:
    """Where the jobs of a run work: beside its copy of the package."""
    return root / SLURM / "code"


def log_of(root: Path, number: str) -> Path:
    """Where the ranks of a job of a run write."""
    return root / SLURM / "logs" / f"train-{number}.log"


class Job(BaseModel):
    """A run as it was submitted; `root` is its folder, absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    stream: str
    tasks: int = Field(ge=1, le=1_000_000)
    """Of the stream."""
    chain: bool
    """One job a task, or one for all."""
    resources: Resources

    @property
    def folder(self) -> Path:
        """RUN/slurm"""
        return self.root / SLURM

    @property
    def config(self) -> Path:
        return self.folder / CONFIG

    @property
    def code(self) -> Path:
        return code_of(self.root)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def python(self) -> str:
        """The interpreter on the nodes."""
        return self.resources.python or sys.executable

    def log(self, number: str) -> Path:
        """Where the ranks of a job write."""
        return log_of(self.root, number)

    def write(self, config: Config) -> None:
        """Leave everything a job needs in RUN/slurm. Raises WriteError."""
        for folder in (self.folder, self.code, self.logs):
            _make_own(folder)
        _refuse_planted(self.logs)
        _copy_code(self.code)
        header = f"# kaizen-dist train {self.config} --stream {self.stream} --out {self.root}\n"
        atomic_write(self.config, (header + config.to_yaml()).encode())
        content = json.dumps(self.model_dump(mode="json"), indent=1)
        atomic_write(self.folder / FILE, content.encode())

    @staticmethod
    def is_in(root: Path) -> bool:
        """Whether a run was ever submitted."""
        return os.path.isfile(root / SLURM / FILE)  # noqa: PTH113 - False also where one may not look

    @classmethod
    def read(cls, root: Path) -> "Job":
        """The job of the run that was submitted in this folder, wherever it lay then.

        Raises:
            DataError: if there is none, or it cannot be read.
        """
        path = root / SLURM / FILE
        try:
            job = cls.model_validate_json(read_bytes(path, follow=False), strict=True)
        except ValidationError as error:
            listed = "; ".join(explained(error, cls))
            raise DataError(f"{path} is damaged: {listed}; submit the run again") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        return job.model_copy(update={"root": root})

    def train(self, task: int | None) -> list[str]:
        """The command of every rank; of a chain's link, up to the end of its task."""
        until = [] if task is None else ["--until", str(task + 1)]
        arguments = ["--stream", self.stream, "--out", str(self.root), "--no-summary", *until]
        return self.rank("train", str(self.config), *arguments)

    def rank(self, *arguments: str) -> list[str]:
        """`kaizen-dist ARGUMENTS` as a rank runs it."""
        python = self.python if self.resources.container is None else "python3"
        return [python, "-u", "-m", "kaizen_dist", *arguments]


@dataclass(frozen=True)
class Srun:
    """How the ranks of a job are started, one task each."""

    job: Job
    log: Path
    """Where the ranks write."""
    output: Path | None = None
    """Where their standard output goes instead."""
    nodes: int | None = None
    """On so many of the job's nodes; None: on all."""

    def command(self, rank: Sequence[str]) -> list[str]:
        """srun's argument list for a command of every rank."""
        asked = self.job.resources
        nodes = self.nodes or asked.nodes
        return [
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={nodes * asked.ranks}",
            f"--ntasks-per-node={asked.ranks}",
            # From 22.05 on srun does not take it from the job.
            f"--cpus-per-task={asked.cpus_per_task}",
            # The ranks end by themselves when one is lost, and say which; and they all leave with
            # the same code when told to, some a moment later than others.
            "--kill-on-bad-exit=0",
            "--unbuffered",
            "--open-mode=append",
            f"--output={self.output or self.log}",
            f"--error={self.log}",
            *asked.srun_args,
            *self._container(),
            *rank,
        ]

    def _container(self) -> list[str]:
        asked = self.job.resources
        if asked.container is None:
            return []
        folders = [str(self.job.root), *asked.mounts]
        if "://" not in self.job.stream:
            folders.insert(1, self.job.stream)
        mounts = ",".join(f"{folder}:{folder}" for folder in folders)
        if asked.container_runtime == "pyxis":
            image = f"--container-image={asked.container}"
            return [image, f"--container-mounts={mounts}", f"--container-workdir={self.job.code}"]
        gpus = ["--nv"] if asked.gpus_per_node else []
        return ["apptainer", "exec", *gpus, "--bind", mounts, asked.container]


def _make_own(folder: Path) -> None:
    """Make a folder within a run; one that lies elsewhere would be overwritten there.

    Raises:
        WriteError: also where a link is in its place.
    """
    if folder.is_symlink():
        raise WriteError(f"cannot write {folder}: it is a link; remove it, or name another --out")
    make_folder(folder)


def _refuse_planted(logs: Path) -> None:
    """That Slurm, which follows links and waits for pipes, writes files of this folder alone.

    Raises:
        WriteError: naming what else lies in it.
    """
    for path in logs.iterdir():
        if _SUBMITITS.fullmatch(path.name):
            continue
        if path.is_symlink() or not path.is_file():
            raise WriteError(f"cannot write into {logs}: {path.name} is no file; remove it")


def _copy_code(code: Path) -> None:
    """A copy of the package as it is now, in place of an earlier one."""
    target = code / _PACKAGE.name
    temporary = code / f".{target.name}.{token_hex(8)}.tmp"
    try:
        if target.is_symlink():
            target.unlink()
        if target.exists() and _PACKAGE.samefile(target):
            return  # a job that submits its successor runs the copy itself
        for leftover in filter(is_leftover, code.glob(".*")):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(_PACKAGE, temporary, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
