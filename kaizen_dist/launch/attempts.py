"""RUN/slurm/attempts.jsonl: every start and end of a submitted run, and whether another follows.

A row is appended when a job is submitted, begins or ends, when the run begins to follow its stream
(following.py), and when no further job will follow. An attempt without a row of its end was killed
together with its batch shell, or requeued by Slurm. `stop_reason` is a pure function of the rows
and of the newest checkpoint.

    {"what": "submitted", "job", "time", "nodes", "ranks_per_node", "task", "exclude", "guard"}
    {"what": "began",     "job", "time", "restart", "nodes", "position"}
    {"what": "ended",     "job", "time", "restart", "code", "reason", "position", "bad_nodes"}
    {"what": "followed",  "job", "time"}
    {"what": "stopped",   "job", "time", "reason"}

`position` is [task, step] of the newest checkpoint, null before the first; `task` is the one that a
job of a chain trains, null for a job that trains all of them; `guard` is the job's retry job.
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
from kaizen_dist.common.files import make_folder, open_append, read_bytes, writing
from kaizen_dist.common.inventory import reasons
from kaizen_dist.common.run_layout import SLURM

FILE = "attempts.jsonl"
Count = Annotated[int, Field(ge=0, lt=2**53)]
Position = tuple[Count, Count] | None
Number = Annotated[str, Field(pattern=r"^[0-9]{1,20}(_[0-9]{1,20})?$")]
"""Of a job; it becomes an argument of scancel and part of the name of a log."""
Nodes = list[Annotated[str, Field(pattern=r"^[\w.,\[\]-]+$")]]
"""Names, which become an option of sbatch."""

PATIENCE = 2
"""Stop after this many consecutive attempts without a new checkpoint."""


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
    """Exit code of `kaizen-dist train`, or srun's."""
    reason: str
    position: Position
    bad_nodes: Nodes
    """Nodes whose ranks were killed by neither Slurm nor the run."""


class Followed(_Row):
    """From here to a `stopped` row the run learns what its stream gets; `job` looks first."""

    what: Literal["followed"] = "followed"


class Stopped(_Row):
    """No further job will follow; `job` decided it."""

    what: Literal["stopped"] = "stopped"
    reason: str


AttemptRow = Submitted | Began | Ended | Followed | Stopped
_ROW: TypeAdapter[AttemptRow] = TypeAdapter(Annotated[AttemptRow, Field(discriminator="what")])


class AttemptLog:
    """The rows of one run, by the run's folder."""

    def __init__(self, run: Path) -> None:
        self.path = run / SLURM / FILE

    def rows(self) -> list[AttemptRow]:
        """All rows, oldest first, without a last one that a kill cut short.

        Raises:
            DataError: if the file cannot be read.
        """
        try:
            data = read_bytes(self.path, follow=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {reasons(error)}") from None
        lines, found = data.splitlines(), []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(_ROW.validate_json(line, strict=True))
            except ValidationError as error:
                if number < len(lines) or data.endswith(b"\n"):
                    raise DataError(
                        f"{self.path}, line {number} is not a row of it: {reasons(error)}; "
                        "remove that line"
                    ) from None
        return found

    def append(self, row: AttemptRow) -> None:
        """Add a row and flush it to disk. Raises WriteError."""
        make_folder(self.path.parent)
        data = (json.dumps(row.model_dump(mode="json")) + "\n").encode()
        with writing(self.path), os.fdopen(open_append(self.path), "ab", buffering=0) as file:
            written = file.write(data)
            if written < len(data):
                # Half a row would make the next one unreadable.
                file.truncate(file.seek(0, os.SEEK_END) - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())


def now() -> float:
    """Seconds since 1970, as in the rows."""
    return round(time.time(), 3)


def stop_reason(
    rows: Sequence[AttemptRow], position: Position, retries: int, current: str | None = None
) -> str | None:
    """Why no further attempt will follow; None if one will.

    Only rows after the last `stopped` count: submitting a stopped run again starts afresh.

    Args:
        rows: of the attempt log.
        position: (task, step) of the newest checkpoint now.
        retries: attempts that may fail since one ended well; one that saved on a signal, or that
            Slurm requeued, has not failed.
        current: the job that is about to begin, if one asks.
    """
    recent = _since_stop(rows)
    begun = [row for row in recent if isinstance(row, Began)]
    ended = {(row.job, row.restart): row for row in recent if isinstance(row, Ended)}
    last = ended.get((begun[-1].job, begun[-1].restart)) if begun else None
    if last is not None and 2 <= last.code <= 4:
        return f"the run ended with code {last.code}, which another attempt would not change"
    same = [row for row in begun[-PATIENCE:] if row.position == position]
    if len(same) == PATIENCE:
        where = "before its first checkpoint"
        if position is not None:
            where = f"before step {position[1]} of task {position[0] + 1}"
        return f"{PATIENCE} attempts in a row made no progress: the run still stands {where}"
    failures = 0
    for number, row in enumerate(begun):
        end = ended.get((row.job, row.restart))
        requeued = row.job in (current, *(later.job for later in begun[number + 1 :]))
        saved = end is not None and end.code in (0, Preempted.exit_code)
        failures += not (requeued or saved)
        if end is not None and end.code == 0:
            failures = 0
    if failures > retries:
        return f"{failures} attempts failed, more than --retries {retries}"
    return None


def followed(rows: Sequence[AttemptRow]) -> Followed | None:
    """The row since which the run follows its stream; None where it does not."""
    return next((row for row in _since_stop(rows) if isinstance(row, Followed)), None)


def bad_nodes(rows: Iterable[AttemptRow]) -> list[str]:
    """Nodes to exclude, in the order in which they failed."""
    found = (name for row in rows if isinstance(row, Ended) for name in row.bad_nodes)
    return list(dict.fromkeys(found))


def _since_stop(rows: Sequence[AttemptRow]) -> Sequence[AttemptRow]:
    stops = [i for i, row in enumerate(rows) if isinstance(row, Stopped)]
    return rows[stops[-1] + 1 :] if stops else rows
