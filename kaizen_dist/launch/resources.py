"""The resources that a run requests from a cluster: a profile file, and flags over it.

A profile (`slurm/profiles/*.yaml`) holds what all runs on a cluster share: partition, account, the
GPUs of a node, modules to load. Every key is documented here, at its field, and nowhere else.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from kaizen_dist.common.console import one_line, printable
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.loading import explained
from kaizen_dist.config.parsing import read_yaml
from kaizen_dist.launch.slurm import minutes

_FLAG = re.compile(r"[a-z][a-z0-9-]*")
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_COMMANDS = ("python", "container")
_SCRIPT = (
    "mem",
    "partition",
    "follow_partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "sbatch",
)
"""Fields whose text stands in the batch script, as options of sbatch."""
_OWN_OPTIONS = re.compile(
    "account|array|chdir|constraint|cpus-per-task|dependency|error|exclude|gpus-per-node|job-name|"
    "kill-on-invalid-dep|mem|nodes|ntasks-per-node|open-mode|output|partition|qos|requeue|signal|"
    "time|wrap"
)
"""Options that a run sets itself, from other keys or because it relies on them."""
_REFUSED = (
    (_SCRIPT, r"\\", "sbatch removes a backslash; write it without"),
    (_COMMANDS, "^-", "it would be taken for an option"),
    (("mounts",), "[:,]", "a folder with : or , cannot be bound"),
)
"""(fields, pattern that their text may not contain, reason)"""
_MOST_MINUTES = 10 * 366 * 24 * 60


class Resources(BaseModel):
    """Resources of one job, and the environment of its ranks."""

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
    follow_partition: str | None = None
    """Of the job of one core that looks for new tasks (`submit --follow`); null: as `partition`."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] = ()
    """Nodes never to be used."""
    signal_seconds: int = Field(120, ge=10, le=65535)
    """Seconds before the time limit at which the ranks are signalled to save and exit."""
    retries: int = Field(5, ge=0)
    """Attempts that may fail (a lost node, a killed rank); preemptions do not count."""
    setup: tuple[str, ...] = ()
    """Lines of shell for the top of the batch script (module load ...), run as they stand."""
    environment: dict[_Variable, str] = Field(default_factory=dict)
    """Variables for the ranks: NCCL_SOCKET_IFNAME: ib0, ..."""
    python: str | None = None
    """Interpreter on the nodes; null = the one that submits."""
    container: str | None = None
    """Image that the ranks run in; the batch script itself runs outside."""
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """How: `apptainer exec IMAGE`, or Slurm's own plugin (`srun --container-image`)."""
    mounts: tuple[str, ...] = ()
    """Folders to bind into the container, beside those of the run and the stream."""
    srun_args: tuple[str, ...] = ()
    """For the srun that starts the ranks: --cpu-bind=cores, --mpi=pmix, ..."""
    sbatch: dict[str, str] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name: {reservation: tests, mail-type: END}."""
    shared_disk: bool = False
    """All nodes see the run's folder, whatever its file system looks like."""

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
    def _one_word(cls, value: Any, info: ValidationInfo) -> Any:
        """No value breaks out of its line of the batch script or its word of a command line."""
        printed = printable if info.field_name == "setup" else one_line
        for text in _texts(value):
            if printed(text) != text:
                raise ValueError("a line break or another control character is not allowed")
            for fields, pattern, reason in _REFUSED:
                if info.field_name in fields and re.search(pattern, text):
                    raise ValueError(reason)
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _FLAG.fullmatch(name):
                raise ValueError(f"{name!r} is not the long name of an option, e.g. reservation")
            if _OWN_OPTIONS.fullmatch(name):
                raise ValueError(f"{name} is set for every run, from its own key where it has one")
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
"""Keys of a profile, and names of flags."""


def read(profile: Path | None, flags: Mapping[str, Any]) -> Resources:
    """A profile's values (None: the defaults), and over them the flags that are not None.

    Raises:
        UsageError: listing every problem, with the nearest known key.
    """
    values = {} if profile is None else _read(profile)
    values |= {name: value for name, value in flags.items() if value is not None}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Resources.model_validate(_absolute_paths(values))
    except ValidationError as error:
        where = "the flags" if profile is None else str(profile)
        listed = "\n".join(f"  {line}" for line in explained(error, Resources))
        raise UsageError(f"{where}: the requested resources are wrong\n{listed}") from None


def _read(profile: Path) -> dict[str, Any]:
    # All scalars as text, which the fields convert: YAML 1.1 takes a time such as 1:30:00 for the
    # number 5400.
    values = read_yaml(profile, "profile", as_text=True) or {}
    if not isinstance(values, dict):
        raise UsageError(f"{profile}: a profile is a mapping of keys")
    return {k: v for k, v in values.items() if v not in ("", "null", "~")}


def _absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make paths independent of the folder: a job works in RUN/slurm/code."""
    found = dict(values)
    for name in _COMMANDS:
        given = values.get(name)
        # A bare program name is looked up in PATH.
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
    """Every text in a field's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, tuple):
        yield from value
