"""What Slurm says: partitions, nodes, jobs.

In go names and job numbers, out come small typed facts. Every question has a time-out, and is
asked by argument lists, never through a shell.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kaizen_dist.errors import KaizenError, UsageError

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
_DOWN = re.compile(r"down|drain|fail|maint|not_responding|power|unknown", re.IGNORECASE)


@dataclass(frozen=True)
class Node:
    """One node, as configured."""

    name: str
    state: str
    """As Slurm writes it: IDLE, MIXED, DOWN*, ..."""
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
    """A job that Slurm still knows."""

    id: str
    state: str
    reason: str
    nodes: str
    """Slurm's own compact list, e.g. node[1-4]; empty while it waits."""
    restarts: int

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
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=timeout, check=False
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
    """All partitions this user can see."""
    found = []
    for fields in _records(ask("scontrol", "show", "partition", "-o")):
        nodes = fields.get("Nodes", "")
        found.append(
            Partition(
                name=fields["PartitionName"],
                default=fields.get("Default") == "YES",
                up=fields.get("State") == "UP",
                max_minutes=minutes(fields.get("MaxTime", "UNLIMITED")),
                nodes=tuple(expand(nodes)) if nodes not in ("", "(null)") else (),
            )
        )
    return found


def nodes(names: Sequence[str] | None = None) -> list[Node]:
    """The nodes of these names, or all."""
    chosen = [] if names is None else [",".join(names)]
    found = []
    for fields in _records(ask("scontrol", "show", "node", "-o", *chosen)):
        name = fields["NodeName"]
        found.append(
            Node(
                name=name,
                state=fields.get("State", "UNKNOWN"),
                cpus=int(fields.get("CPUTot", "1")),
                memory_mb=int(fields.get("RealMemory", "0")),
                gpus=gpus_of(fields.get("Gres", "")),
                hostname=fields.get("NodeHostName", name),
                address=fields.get("NodeAddr", name),
            )
        )
    return found


def job(number: str) -> Job | None:
    """A job by its number; None if Slurm has forgotten it, or never knew it."""
    try:
        records = _records(ask("scontrol", "show", "job", "-o", number))
    except KaizenError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return _job(records[0]) if records else None


def jobs(numbers: Sequence[str]) -> dict[str, Job]:
    """Those of these jobs that Slurm still knows, by number, in one question."""
    wanted = set(numbers)
    records = _records(ask("scontrol", "show", "job", "-o"))
    return {found.id: found for found in map(_job, records) if found.id in wanted}


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


def _job(fields: dict[str, str]) -> Job:
    number = fields["JobId"]
    if "ArrayTaskId" in fields and fields["ArrayTaskId"].isdigit():
        number = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}"
    nodelist = fields.get("NodeList", "")
    return Job(
        id=number,
        state=fields.get("JobState", "UNKNOWN"),
        reason=fields.get("Reason", ""),
        nodes="" if nodelist == "(null)" else nodelist,
        restarts=int(fields.get("Restarts", "0")),
    )


def _records(text: str) -> list[dict[str, str]]:
    """`scontrol show ... -o`: one record a line, as its KEY=VALUE words."""
    lines = (dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines())
    return [fields for fields in lines if fields]
