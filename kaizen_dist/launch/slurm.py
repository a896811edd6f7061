"""What Slurm says: partitions, nodes, jobs.

In go names and job numbers, out come small typed facts. Every question has a time-out, and is
asked by argument lists, never through a shell.

What is asked for are single fields that Slurm itself fills in, and jobs of nobody else's: a job's
name, a comment or a node's reason is free text, in which anybody may write what looks like an
answer. Answers that do not have their form are none.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kaizen_dist.common.errors import KaizenError, UsageError

_TIMEOUT_SECONDS = 60.0
FINAL_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    }
)
"""States a job does not leave by itself."""
_DOWN = re.compile(r"down|drain|fail|inval|maint|power|unknown|[*~#!%$]", re.IGNORECASE)
"""The signs follow the state of a node that does not answer, is without power, or is kept back."""
_MARK = "\x1f"
"""Between the fields of a line: what stands in no name."""
_FORMATTED = ("SQUEUE_", "SINFO_", "SCANCEL_")
"""Variables by which a user has other answers than those that are asked for."""
_JOB = re.compile(_MARK.join([r"(\d+(?:_\d+)?)", "([A-Z_]+)", "([^\x1f]*)", "([^\x1f]*)", "(.*)"]))


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
        """Whether jobs can be placed on it."""
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
class Job:
    """A job of this user that Slurm still knows."""

    id: str
    """17, or 17_3 in an array."""
    state: str
    reason: str
    nodes: str
    """Slurm's own compact list, e.g. node[1-4]; empty while it waits."""
    folder: str
    """Where it works, as sbatch was told."""

    @property
    def in_array(self) -> bool:
        return "_" in self.id

    @property
    def over(self) -> bool:
        return self.state in FINAL_STATES


def available() -> bool:
    """Whether this machine can talk to a Slurm cluster."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def ask(*command: str, given: str = "", timeout: float = _TIMEOUT_SECONDS) -> str:
    """What a Slurm command prints; `given` is its standard input.

    Raises:
        KaizenError: if it fails, with what it said; or does not answer in time.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(_FORMATTED)}
    try:
        done = subprocess.run(
            command,
            input=given,
            env=own,
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
    members: dict[str, list[str]] = {}
    facts: dict[str, tuple[bool, bool, int | None]] = {}
    for partition, up, longest, node in _nodewise("%P", "%a", "%l", "%N"):
        name = partition.removesuffix("*")
        members.setdefault(name, []).append(node)
        facts[name] = partition.endswith("*"), up == "up", _limit(longest)
    return [Partition(name, *facts[name], tuple(members[name])) for name in sorted(members)]


def nodes(names: Sequence[str] | None = None) -> list[Node]:
    """The nodes of these names, or all, each once."""
    found = {}
    for name, state, cpus, memory, gres, *where in _nodewise(
        "%N", "%T", "%c", "%m", "%G", "%n", "%o"
    ):
        if names is None or name in names:
            found[name] = Node(name, state, _number(cpus), _number(memory), gpus_of(gres), *where)
    return list(found.values())


def job(number: str) -> Job | None:
    """A job of this user by its number; None if Slurm has forgotten it, or never knew it."""
    return jobs().get(number)


def jobs() -> dict[str, Job]:
    """All jobs of this user that Slurm still knows, by number, in one question."""
    fields = _MARK.join(("%i", "%T", "%r", "%N", "%Z"))
    own = f"--user={os.getuid()}"
    said = ask("squeue", "--noheader", "--array", "--states=all", own, f"--format={fields}")
    found = (Job(*match.groups()) for match in map(_JOB.fullmatch, said.split("\n")) if match)
    return {job.id: job for job in found}


def refusal(script: str) -> str | None:
    """Why sbatch would not take a batch script; None if it would. Queues nothing."""
    try:
        ask("sbatch", "--test-only", given=script)
    except KaizenError as error:
        return str(error)
    return None


def requeue(number: str) -> None:
    """Put a running job back into the queue under its number. Raises KaizenError."""
    ask("scontrol", "requeue", number)


def cancel(numbers: Sequence[str]) -> None:
    """End these jobs, waiting or running. Raises KaizenError."""
    if numbers:
        ask("scancel", *numbers)


def expand(nodelist: str) -> list[str]:
    """The names in Slurm's compact list: node[1-2,5] is node1, node2, node5."""
    return ask("scontrol", "show", "hostnames", nodelist).split()


def minutes(text: str) -> int | None:
    """A time as Slurm writes it ([DAYS-]HH:MM:SS, MM:SS, MINUTES, ...) in whole minutes, rounded
    up; None for no limit.

    Raises:
        ValueError: for all else.
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
    counts = re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres)
    return sum(int(count) for count in counts)


def _nodewise(*fields: str) -> list[list[str]]:
    """These fields of sinfo, of every node in every partition."""
    said = ask("sinfo", "--noheader", "--Node", f"--format={_MARK.join(fields)}")
    rows = (line.split(_MARK) for line in said.split("\n"))
    return [row for row in rows if len(row) == len(fields)]


def _limit(text: str) -> int | None:
    try:
        return minutes(text)
    except ValueError:  # n/a
        return None


def _number(text: str) -> int:
    """The number that a field begins with; 0 for n/a."""
    match = re.match(r"\d+", text, re.ASCII)
    return int(match[0]) if match else 0
