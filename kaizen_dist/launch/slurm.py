"""Facts about a cluster from Slurm's own commands: partitions, nodes, jobs, idle GPUs.

Every query is an argument list with a time-out, never a shell. Only fields that Slurm itself fills
in are asked for, and only this user's jobs: a job's name, a comment or a node's reason is free text
in which anybody may write what looks like an answer. Lines of another form are ignored.
"""

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kaizen_dist.common.errors import KaizenError, UsageError

_TIMEOUT_SECONDS = 60.0
_FINAL = re.compile(
    "BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|TIMEOUT"
)
"""States that a job does not leave by itself."""
_DOWN = re.compile(r"down|drain|fail|inval|maint|power|unknown|[*~#!%$]", re.IGNORECASE)
"""The signs follow the state of a node that does not answer, is powered off, or is reserved."""
_SEPARATOR = "\x1f"
"""Between the fields of a line: a character that no name contains."""
_FORMATTING = ("SQUEUE_", "SINFO_", "SCANCEL_", "SLURM_TIME_FORMAT")
"""Variables with which a user changes the output of these commands."""
_JOB = re.compile(_SEPARATOR.join([r"(\d+(?:_\d+)?)", "([A-Z_]+)", *["([^\x1f]*)"] * 3, "(.*)"]))


@dataclass(frozen=True)
class Node:
    """One node, as configured."""

    name: str
    state: str
    """As sinfo writes it: idle, mixed, down*, ..."""
    cpus: int
    memory_mb: int
    gpus: int
    hostname: str
    address: str

    @property
    def usable(self) -> bool:
        """Whether it takes jobs."""
        return not _DOWN.search(self.state)


@dataclass(frozen=True)
class Partition:
    """A partition, as configured."""

    name: str
    default: bool
    up: bool
    max_minutes: int | None
    """None: no limit."""
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class SlurmJob:
    """A job of this user that Slurm still knows."""

    id: str
    """17; 17_3 for a task of an array."""
    state: str
    reason: str
    nodes: str
    """Slurm's compact list, e.g. node[1-4]; empty while the job is pending."""
    folder: str
    """Its working directory."""
    start: float | None = None
    """When it started, or may start at the earliest, in seconds since 1970; None: not known."""

    @property
    def over(self) -> bool:
        return _FINAL.fullmatch(self.state) is not None


def available() -> bool:
    """Whether this machine has the commands of a Slurm cluster."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def ask(*command: str, given: str = "", timeout: float = _TIMEOUT_SECONDS) -> str:
    """Standard output of a Slurm command; `given` is its standard input.

    Raises:
        UsageError: if this machine does not have the command.
        KaizenError: if it fails (with its message) or does not answer in time.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_FORMATTING)}
    try:
        done = subprocess.run(
            command,
            input=given,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise UsageError(
            f"{command[0]} is not here: this is no login node of a Slurm cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise KaizenError(
            f"{command[0]} did not answer within {timeout:g} s; is the controller up (sinfo)?"
        ) from None
    if done.returncode:
        raise KaizenError(f"{' '.join(command[:3])} failed: {done.stderr.strip()}")
    return done.stdout


def partitions() -> list[Partition]:
    """All partitions with nodes that this user can see."""
    found: dict[str, Partition] = {}
    for name, up, limit, node in _per_node("%P", "%a", "%l", "%N"):
        known = found[name].nodes if name in found else ()
        found[name] = Partition(
            name.removesuffix("*"), name.endswith("*"), up == "up", _limit(limit), (*known, node)
        )
    return sorted(found.values(), key=lambda partition: partition.name)


def partition(name: str | None) -> Partition:
    """A partition by its name; None: the cluster's default.

    Raises:
        UsageError: if the cluster has none, with the nearest name.
    """
    known = partitions()
    for found in known:
        if found.name == name or (name is None and found.default):
            return found
    names = [found.name for found in known]
    if name is None:
        raise UsageError(f"partition: this cluster has none by default; one of {', '.join(names)}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UsageError(f"partition: this cluster has no {name}; {hint}")


def nodes(names: Sequence[str] | None = None) -> list[Node]:
    """The nodes of these names, or all, each once."""
    found = {}
    fields = ("%N", "%T", "%c", "%m", "%G", "%n", "%o")
    for name, state, cpus, memory, gres, *where in _per_node(*fields):
        if names is None or name in names:
            found[name] = Node(name, state, _number(cpus), _number(memory), gpus_of(gres), *where)
    return list(found.values())


def jobs() -> dict[str, SlurmJob]:
    """All jobs of this user that Slurm still knows, by number, in one query."""
    fields = _SEPARATOR.join(("%i", "%T", "%r", "%N", "%S", "%Z"))
    own = f"--user={os.getuid()}"
    lines = ask("squeue", "--noheader", "--array", "--states=all", own, f"--format={fields}")
    matches = (match for line in lines.split("\n") if (match := _JOB.fullmatch(line)))
    return {m[1]: SlurmJob(m[1], m[2], m[3], m[4], m[6], _time(m[5])) for m in matches}


def idle_gpus() -> dict[str, tuple[int, int]]:
    """(idle, all) GPUs of each partition that has any, over the nodes that take jobs.

    Raises:
        KaizenError: if Slurm does not answer.
    """
    columns = "PartitionName:64,NodeList:128,Gres:256,GresUsed:256"
    usable = {node.name for node in nodes() if node.usable}
    counts: dict[str, tuple[int, int]] = {}
    for line in ask("sinfo", "-h", "-N", "-O", columns).splitlines():
        name, node, *gres = (*line.split(), "", "")
        total, used = (gpus_of(part) for part in (*gres, "")[:2])
        if node in usable and total:
            idle, known = counts.get(name, (0, 0))
            counts[name] = idle + max(0, total - used), known + total
    return counts


def minutes(text: str) -> int | None:
    """A time as Slurm writes it ([DAYS-]HH:MM:SS, MM:SS, MINUTES, ...) in whole minutes, rounded
    up; None for no limit.

    Raises:
        ValueError: for any other text.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a time; write MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None or len(parts) == 3:
        hours, mins, seconds = (*parts, 0, 0)[:3]
    else:
        hours, mins, seconds = 0, *(*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)


def gpus_of(gres: str) -> int:
    """GPUs in a Gres field such as gpu:a100:4(S:0-1),shard:8."""
    return sum(map(int, re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres)))


def _per_node(*fields: str) -> list[list[str]]:
    """These fields of sinfo, for every node in every partition."""
    lines = ask("sinfo", "--noheader", "--Node", f"--format={_SEPARATOR.join(fields)}").split("\n")
    rows = (line.split(_SEPARATOR) for line in lines)
    return [row for row in rows if len(row) == len(fields)]


def _limit(text: str) -> int | None:
    try:
        return minutes(text)
    except ValueError:  # n/a
        return None


def _time(text: str) -> float | None:
    """Seconds since 1970 of a local time as Slurm writes it; None for N/A."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str) -> int:
    """The number at the beginning of a field; 0 for n/a."""
    match = re.match(r"\d+", text, re.ASCII)
    return int(match[0]) if match else 0
