"""What a job on the cluster runs: RUN/slurm, which no later edit changes.

RUN/slurm/job.json        what was asked for, enough to submit it again
RUN/slurm/config.yaml     the configuration, as resolved
RUN/slurm/code/           a copy of the package
RUN/slurm/attempts.jsonl  (ledger.py)
RUN/slurm/logs/           train-JOB.log of the ranks, and submitit's files
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

import kaizen_dist
from kaizen_dist.config import Config
from kaizen_dist.errors import DataError
from kaizen_dist.files import atomic_write, cannot_write, make_folder
from kaizen_dist.launch.resources import Resources

FOLDER = "slurm"
FILE = "job.json"
_PACKAGE = Path(kaizen_dist.__file__).parent


class Job(BaseModel):
    """A run as it was submitted; `root` is its folder, absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    stream: str
    tasks: int
    """Of the stream."""
    chain: bool
    """One job a task, or one for all."""
    resources: Resources

    @property
    def folder(self) -> Path:
        """RUN/slurm"""
        return self.root / FOLDER

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def code(self) -> Path:
        return self.folder / "code"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def python(self) -> str:
        """The interpreter on the nodes."""
        return self.resources.python or sys.executable

    def log(self, number: str) -> Path:
        """Where the ranks of a job write."""
        return self.logs / f"train-{number}.log"

    def write(self, config: Config) -> None:
        """Leave everything a job needs in RUN/slurm. Raises WriteError."""
        make_folder(self.logs)
        _copy_code(self.code)
        header = f"# kaizen-dist train {self.config} --stream {self.stream} --out {self.root}\n"
        atomic_write(self.config, (header + config.to_yaml()).encode())
        content = json.dumps(self.model_dump(mode="json"), indent=1)
        atomic_write(self.folder / FILE, content.encode())

    @staticmethod
    def is_in(root: Path) -> bool:
        """Whether a run was ever submitted."""
        return (root / FOLDER / FILE).is_file()

    @classmethod
    def read(cls, root: Path) -> "Job":
        """The job of a run that was submitted.

        Raises:
            DataError: if there is none, or it cannot be read.
        """
        path = root / FOLDER / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None

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


def _copy_code(code: Path) -> None:
    """A copy of the package as it is now, in place of an earlier one."""
    temporary, target = code / ".kaizen_dist.tmp", code / _PACKAGE.name
    if _PACKAGE.samefile(target) if target.exists() else False:
        return  # a job that submits its successor runs the copy itself
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(_PACKAGE, temporary, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
