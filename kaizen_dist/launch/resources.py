"""What a run asks a cluster for, from a profile file and from flags on top of it.

A profile (`slurm/profiles/*.yaml`) holds what is the same for all runs on a cluster: partition,
account, how its nodes are made, which modules to load. Every key is documented here, at its
field, and nowhere else.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kaizen_dist.common.console import one_line, printable
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.loading import explained
from kaizen_dist.config.parsing import read_yaml
from kaizen_dist.launch.slurm import minutes

_FLAG = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMANDS = ("python", "container")
_SCRIPT = ("mem", "partition", "account", "qos", "constraint", "exclude", "sbatch")
"""Fields whose text stands in the batch script, as options of sbatch."""
_OWN_OPTIONS = re.compile(
    "account|array|chdir|constraint|cpus-per-task|dependency|error|exclude|gpus-per-node|job-name|"
    "kill-on-invalid-dep|mem|nodes|ntasks-per-node|open-mode|output|partition|qos|requeue|signal|"
    "time|wrap"
)
"""What a run sets itself, by other keys or because it does not come home without."""
_MOST_MINUTES = 10 * 366 * 24 * 60


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
    signal_seconds: int = Field(120, ge=10, le=65535)
    """So long before the time limit the ranks are told to save and leave."""
    retries: int = Field(5, ge=0)
    """Attempts that may fail (a node lost, a rank killed); preemptions do not count."""
    setup: tuple[str, ...] = ()
    """Lines of shell for the top of the batch script: module load ... They run as they stand."""
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
        limit = minutes(value) if isinstance(value, str) else 0
        if limit is None:
            raise ValueError("a job needs a limit, so that it can save before it")
        if limit > _MOST_MINUTES:
            raise ValueError("longer than ten years")
        return value

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """A value stays what it is in a batch script and on a command line: one word of one line,
        whatever is in it."""
        name = str(info.field_name)
        shown = printable if name == "setup" else one_line
        for text in _texts(value):
            if shown(text) != text:
                raise ValueError("a line break or another control character has no place here")
            if name in _SCRIPT and "\\" in text:
                raise ValueError("sbatch takes a backslash out of it; write it without")
            if name in _COMMANDS and text.startswith("-"):
                raise ValueError("it would be taken for an option")
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _FLAG.fullmatch(name):
                raise ValueError(f"{name!r} is no long name of an option, e.g. reservation")
            if _OWN_OPTIONS.fullmatch(name):
                raise ValueError(f"{name} is set for every run, from its own key where it has one")
        return value

    @field_validator("environment")
    @classmethod
    def _environment(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable")
        return value

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(mark in folder for folder in value for mark in ":,"):
            raise ValueError("a folder with : or , cannot be bound")
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
        return Resources.model_validate(_at_home_anywhere(values))
    except ValidationError as error:
        where = "the flags" if profile is None else str(profile)
        listed = "\n".join(f"  {line}" for line in explained(error, Resources))
        raise UsageError(f"{where}: what is asked of the cluster is wrong\n{listed}") from None


def _read(profile: Path) -> dict[str, Any]:
    # All scalars as text, which the fields turn into what they are: YAML 1.1 on its own takes a
    # time such as 1:30:00 for the number 5400.
    values = read_yaml(profile, "profile", as_text=True) or {}
    if not isinstance(values, dict):
        raise UsageError(f"{profile}: a profile is a mapping of keys")
    return {k: v for k, v in values.items() if v not in ("", "null", "~")}


def _at_home_anywhere(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values whose files are found from the folder in which a job works, too."""
    found = dict(values)
    for name in _COMMANDS:
        given = values.get(name)
        # A bare name of a program is one of PATH.
        if not isinstance(given, str) or (name == "python" and "/" not in given):
            continue
        if os.path.isfile(given):  # noqa: PTH113 - any text: False where it is no path
            found[name] = str(Path(given).absolute())
    if isinstance(mounts := values.get("mounts"), tuple):
        found["mounts"] = tuple(
            str(Path(m).absolute()) if isinstance(m, str) else m for m in mounts
        )
    return found


def _texts(value: Any) -> Iterator[str]:
    """All text in a field's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, tuple):
        yield from value
