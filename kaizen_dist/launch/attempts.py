"""RUN/slurm/attempts.jsonl: every start and end of a run on a cluster, and what follows.

A row is appended when jobs are submitted, when one begins or ends, and when no more of them
shall follow. An attempt that ends without a row of its own was killed together with its batch
shell, or put back by Slurm itself. `verdict` is a pure function of the rows and of where the
run stands: whether to try again, or why not.

    {"what": "submitted", "job", "time", "nodes", "ranks_per_node", "task", "exclude", "guard"}
    {"what": "began",     "job", "time", "restart", "nodes", "position"}
    {"what": "ended",     "job", "time", "restart", "code", "reason", "position", "bad_nodes"}
    {"what": "stopped",   "job", "time", "reason"}

`position` is [task, step] of the newest checkpoint, null before the first; `task` is that of a
chain's link, null for a job that trains all of them.
"""

import errno
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kaizen_dist.common.errors import DataError, Preempted
from kaizen_dist.common.files import cannot_write, make_folder, open_append, read_bytes

FILE = "attempts.jsonl"
Count = Annotated[int, Field(ge=0, lt=2**53)]
Position = tuple[Count, Count] | None
Number = Annotated[str, Field(pattern=r"^[0-9]{1,20}(_[0-9]{1,20})?$")]
"""Of a job, as Slurm has it: it becomes an argument, and part of the name of a log."""
Nodes = list[Annotated[str, Field(pattern=r"^[\w.,\[\]-]+$")]]
"""Names, which become an option of sbatch."""

PATIENCE = 2
"""So many attempts in a row without progress are one too many."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Number
    time: float = Field(ge=0, lt=1e12)


class Submitted(_Row):
    """A job has been queued."""

    what: Literal["submitted"] = "submitted"
    nodes: Count
    ranks_per_node: Count
    task: Count | None
    exclude: Nodes
    guard: Number | None
    """The job that waits for this one to fail."""


class Began(_Row):
    """A job has started its ranks."""

    what: Literal["began"] = "began"
    restart: Count
    """How often Slurm has requeued the job before."""
    nodes: Nodes
    position: Position


class Ended(_Row):
    """The ranks of a job have ended."""

    what: Literal["ended"] = "ended"
    restart: Count
    code: int = Field(gt=-(2**31), lt=2**31)
    """Of `kaizen-dist train`, or what srun made of it."""
    reason: str
    position: Position
    bad_nodes: Nodes
    """Nodes whose ranks were killed by neither Slurm nor the run."""


class Stopped(_Row):
    """No further job shall follow; `job` said so."""

    what: Literal["stopped"] = "stopped"
    reason: str


Row = Submitted | Began | Ended | Stopped
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="what")])


class Ledger:
    """The rows of one run; `folder` is RUN/slurm."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def rows(self) -> list[Row]:
        """All rows, oldest first; a last one cut short by a kill is not one.

        Raises:
            DataError: if the file cannot be read.
        """
        try:
            data = read_bytes(self.path, follow=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from None
        lines, whole = data.splitlines(), data.endswith(b"\n")
        found: list[Row] = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(_ROW.validate_json(line, strict=True))
            except ValidationError as error:
                if number < len(lines) or whole:
                    raise DataError(
                        f"{self.path}, line {number} is not a row of it: {_reason(error)}; "
                        "remove that line"
                    ) from None
        return found

    def append(self, row: Row) -> None:
        """Add a row, and see it on the disk. Raises WriteError."""
        make_folder(self.path.parent)
        data = (json.dumps(row.model_dump(mode="json")) + "\n").encode()
        try:
            descriptor = open_append(self.path)
            try:
                written = os.write(descriptor, data)
                if written < len(data):
                    # Half a row would make the next one unreadable.
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def now() -> float:
    """Seconds since 1970, as in the rows."""
    return round(time.time(), 3)


def verdict(
    rows: Sequence[Row], position: Position, retries: int, current: str | None = None
) -> str | None:
    """Why no other attempt shall follow those in the rows; None if one shall.

    Only what came after the last `stopped` counts: who submits a stopped run again means it.

    Args:
        rows: of the ledger.
        position: where the run stands now.
        retries: attempts that may fail; one that heeds a signal, or that Slurm puts back into
            the queue, has not.
        current: the job that asks because it is about to begin, if one does.
    """
    recent = _since_stop(rows)
    begun = [row for row in recent if isinstance(row, Began)]
    ended = {(row.job, row.restart): row for row in recent if isinstance(row, Ended)}
    last = ended.get((begun[-1].job, begun[-1].restart)) if begun else None
    if last is not None and 2 <= last.code <= 4:
        return f"the run ended with code {last.code}, which no other attempt mends"
    same = [row for row in begun[-PATIENCE:] if row.position == position]
    if len(same) == PATIENCE:
        where = "before its first checkpoint" if position is None else _words(position)
        return f"{PATIENCE} attempts in a row made no progress: the run still stands {where}"
    failures = 0
    for number, row in enumerate(begun):
        end = ended.get((row.job, row.restart))
        put_back = row.job in (current, *(later.job for later in begun[number + 1 :]))
        heeded = end is not None and end.code in (0, Preempted.exit_code)
        failures += not (put_back or heeded)
    if failures > retries:
        return f"{failures} attempts failed, more than --retries {retries}"
    return None


def bad_nodes(rows: Iterable[Row]) -> list[str]:
    """Nodes to leave out from now on, in the order in which they failed."""
    found = (name for row in rows if isinstance(row, Ended) for name in row.bad_nodes)
    return list(dict.fromkeys(found))


def queued(rows: Iterable[Row]) -> list[str]:
    """All jobs and guards ever submitted, oldest first."""
    numbers: list[str] = []
    for row in rows:
        if isinstance(row, Submitted):
            numbers += [row.job, *([row.guard] if row.guard else [])]
    return numbers


def _since_stop(rows: Sequence[Row]) -> Sequence[Row]:
    stops = [i for i, row in enumerate(rows) if isinstance(row, Stopped)]
    return rows[stops[-1] + 1 :] if stops else rows


def _words(position: tuple[int, int]) -> str:
    return f"before step {position[1]} of task {position[0] + 1}"
