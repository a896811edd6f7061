"""What a run asks a cluster for, from a profile file and from flags on top of it.

A profile (`slurm/profiles/*.yaml`) holds what is the same for all runs on a cluster: partition,
account, how its nodes are made, which modules to load. Every key is documented here, at its
field, and nowhere else.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kaizen_dist.errors import UsageError
from kaizen_dist.launch.cluster import minutes

_FLAG = re.compile(r"[a-z][a-z0-9-]*")


class Resources(BaseModel):
    """One job's share of a cluster, and how it is lived in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    """0: ranks compute on CPUs."""
    ranks_per_node: int | None = Field(None, ge=1)
    """null: one a GPU, or one a node where there are no GPUs."""
    cpus_per_task: int = Field(1, ge=1)
    """CPU cores of a rank: its own threads and those of `views.workers`."""
    time: str = "24:00:00"
    """Limit of a job: MINUTES, HH:MM:SS or DAYS-HH:MM:SS. A run may take many such jobs."""
    mem: str | None = None
    """Memory of a node, as Slurm writes it: 64G."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] = ()
    """Nodes never to be used."""
    signal_seconds: int = Field(120, ge=10)
    """So long before the time limit the ranks are told to save and leave."""
    retries: int = Field(5, ge=0)
    """Attempts that may fail (a node lost, a rank killed); preemptions do not count."""
    setup: tuple[str, ...] = ()
    """Lines of shell for the top of the batch script: module load ..."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for the ranks: NCCL_SOCKET_IFNAME: ib0, ..."""
    python: str | None = None
    """The interpreter on the nodes; null = the one that submits."""
    container: str | None = None
    """An image that the ranks run in; the batch script itself runs outside."""
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """How: `apptainer exec IMAGE`, or Slurm's own plugin (`srun --container-image`)."""
    mounts: tuple[str, ...] = ()
    """Folders that the container shall see, beside those of the run and the stream."""
    srun_args: tuple[str, ...] = ()
    """For the srun that starts the ranks: --cpu-bind=cores, --mpi=pmix, ..."""
    sbatch: dict[str, str] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name: {reservation: tests, mail-type: END}."""
    shared_disk: bool = False
    """The run's folder is seen by all nodes, whatever its file system looks like."""

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if isinstance(value, str) and minutes(value) is None:
            raise ValueError("a job needs a limit, so that it can save before it")
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in value if not _FLAG.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no long name of an option, e.g. reservation")
        return value

    @property
    def ranks(self) -> int:
        """Ranks of a node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks

    @property
    def minutes(self) -> int:
        """The time limit."""
        limit = minutes(self.time)
        assert limit is not None, "checked when read"
        return limit


FIELDS = frozenset(Resources.model_fields)
"""Names that a profile, and flags, may set."""


def read(profile: Path | None, flags: Mapping[str, Any]) -> Resources:
    """A profile's values (none: the defaults), and over them the flags that are not None.

    Raises:
        UsageError: listing all that is wrong, with the nearest known key.
    """
    values: dict[str, Any] = {}
    if profile is not None:
        values = _read(profile)
    values |= {name: value for name, value in flags.items() if value is not None}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Resources.model_validate(values)
    except ValidationError as error:
        where = "the flags" if profile is None else str(profile)
        listed = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise UsageError(f"{where}: what is asked of the cluster is wrong\n{listed}") from None


def _read(profile: Path) -> dict[str, Any]:
    try:
        # All scalars as text, which the fields turn into what they are: YAML 1.1 on its own takes
        # a time such as 1:30:00 for the number 5400.
        values = yaml.load(profile.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the profile {profile}: {error}") from None
    if not isinstance(values or {}, dict):
        raise UsageError(f"{profile}: a profile is a mapping of keys")
    return {k: v for k, v in (values or {}).items() if v not in ("", "null", "~")}


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}"
    known = list(Resources.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"
