"""State of runs: from their files and from Slurm's queue.

Folders give a `RunStatus` for every run beneath them. On a cluster this user's jobs are queried
once; without one, and for a run that somebody else has submitted, the run's files decide.

    running       a job runs it, or its log has grown lately
    pending       in the queue, and why
    waiting       all tasks are learnt, and a job looks for new ones
    finished      all tasks are learnt
    preempted     told to make room; its job is not in the queue any more
    failed        its last attempt failed
    stopped       no further attempt follows, and why; a local run: no step was logged lately
    damaged       one of its files cannot be read, which and why
    unknown       nothing tells
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import localtime, strftime
from typing import Any

from kaizen_dist.common.errors import DataError, KaizenError, Preempted
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempts import (
    AttemptLog,
    AttemptRow,
    Began,
    Ended,
    Followed,
    Stopped,
    Submitted,
    followed,
)
from kaizen_dist.launch.job import FOLLOW_LOG, watchers
from kaizen_dist.launch.progress import Progress, progress, readable
from kaizen_dist.launch.slurm import SlurmJob

Queue = Mapping[str, SlurmJob]

ORDER = (
    *("running", "pending", "damaged", "failed", "stopped", "preempted", "unknown"),
    *("waiting", "finished"),
)
"""Order of the states in a table: first what goes on, then what needs attention."""
_DEPTH = 5
_PART_DONE = "a part is done"
_USUAL = ("BeginTime", "Dependency", "None")
"""Why a job that is to look for new tasks later is pending."""
_LOST = f"no job looks for new tasks any more (slurm/logs/{FOLLOW_LOG}); `submit --follow` goes on"
_QUIET_SECONDS = 120.0
_QUIET_INTERVALS = 20
"""A local run that has been silent for longer than both has stopped."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    run: str
    """Its folder, relative to the folders that were given."""
    state: str
    why: str
    job: str | None
    nodes: str
    """Slurm's compact list, e.g. node[1-2]; empty for a local run."""
    restarts: int
    progress: Progress
    looks_at: float | None = None
    """When a job looks for new tasks of its stream next, in seconds since 1970; None: none will."""

    def to_json(self) -> dict[str, Any]:
        """Flat: {"run", "state", ..., "task", "step", ...}."""
        return {k: v for k, v in asdict(self).items() if k != "progress"} | asdict(self.progress)


@dataclass(frozen=True)
class Overview:
    """All runs, and the cluster they are on."""

    runs: list[RunStatus]
    idle_gpus: dict[str, tuple[int, int]]
    """(idle, all) GPUs of each partition that has any, over the nodes that take jobs."""
    problem: str = ""
    """Why the queue could not be queried."""

    def to_json(self) -> dict[str, Any]:
        """{"runs": [...], "gpus": {"main": {"idle": 3, "total": 32}}, "problem": ""}"""
        gpus = {name: {"idle": i, "total": t} for name, (i, t) in self.idle_gpus.items()}
        return {"runs": [r.to_json() for r in self.runs], "gpus": gpus, "problem": self.problem}


def overview(folders: Sequence[Path], now: float) -> Overview:
    """The runs in and beneath some folders at `now` (seconds since 1970).

    Raises:
        DataError: if there is none.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    if not runs:
        raise DataError(f"no run in {', '.join(map(str, folders))}; train or submit starts one")
    damage: dict[Path, list[str]] = {run: [] for run in runs}
    logs = {run: readable(lambda r: AttemptLog(r).rows(), run, damage[run]) or [] for run in runs}
    queue, gpus, problem = _query(any(logs.values()))
    found = []
    for run, rows in logs.items():
        status = status_of(run, rows, queue if _is_own(run) else None, progress(run, now))
        why = "; ".join(filter(None, [*damage[run], status.progress.damage]))
        if why:
            alive = status.state in ("running", "pending")
            status = replace(status, state=status.state if alive else "damaged", why=why)
        found.append(status)
    found.sort(key=lambda status: (ORDER.index(status.state), status.run))
    return Overview(found, gpus, problem)


def find_runs(folder: Path) -> Iterator[Path]:
    """The folder itself, if it holds a run, or those beneath it that do.

    Raises:
        DataError: if there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a run's, or one that holds runs")
    yield from _runs_in(folder, _DEPTH, {})


def status_of(
    run: Path, rows: Sequence[AttemptRow], queue: Queue | None, at: Progress
) -> RunStatus:
    """Status of a run from its attempt log, this user's jobs (None: unknown) and its progress."""
    job = current_job(rows, queue or {})
    listed = (queue or {}).get(job) if job else None
    state, why = _state(rows, listed, queue, at)
    nodes = listed.nodes if listed is not None else ""
    if state == "running" and not nodes:
        nodes = ",".join(next((r.nodes for r in reversed(rows) if isinstance(r, Began)), []))
    found = RunStatus(str(run), state, why, job, nodes, restarts(rows), at)
    return found if queue is None or followed(rows) is None else _following(found, queue)


def _following(status: RunStatus, queue: Queue) -> RunStatus:
    """The status of a run that follows its stream."""
    watching = watchers(Path(status.run).resolve(), queue.values())
    rests = status.state == "finished" or status.why == _PART_DONE
    if not watching:
        return replace(status, state="stopped", why=_LOST) if rests else status
    looks_at = min((job.start for job in watching if job.start is not None), default=None)
    if not rests:
        return replace(status, looks_at=looks_at)
    why = "for new tasks"
    why += "" if looks_at is None else strftime("; looks at %H:%M:%S", localtime(looks_at))
    if held := [job for job in watching if job.state == "PENDING" and job.reason not in _USUAL]:
        why += f"; job {held[0].id} waits: {held[0].reason}"
    return replace(status, state="waiting", why=why, looks_at=looks_at)


def current_job(rows: Sequence[AttemptRow], queue: Queue) -> str | None:
    """The running job, else the first pending one, else the last that began or was submitted."""
    submitted = [row.job for row in rows if isinstance(row, Submitted)]
    begun = [row.job for row in rows if isinstance(row, Began)]
    alive = [job for job in submitted if job in queue and not queue[job].over]
    run = [job for job in alive if queue[job].state != "PENDING"]
    return next(iter([*run, *alive, *begun[-1:], *submitted[-1:]]), None)


def restarts(rows: Sequence[AttemptRow]) -> int:
    """Attempts beyond the first one of every job, or task of a chain, that has begun."""
    task_of = {row.job: row.task for row in rows if isinstance(row, Submitted)}
    begun = [task_of.get(row.job) for row in rows if isinstance(row, Began)]
    return len(begun) - len(set(begun))


def _state(
    rows: Sequence[AttemptRow], job: SlurmJob | None, queue: Queue | None, at: Progress
) -> tuple[str, str]:
    """(state, why)"""
    last = rows[-1] if rows else None
    if job is not None and not job.over and not (at.finished and followed(rows) is None):
        pending = job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")
        return ("pending", job.reason) if pending else ("running", "")
    if at.finished:
        if not isinstance(last, Stopped) or not any(isinstance(row, Followed) for row in rows):
            return "finished", ""
        code = next((row.code for row in reversed(rows) if isinstance(row, Ended)), 0)
        # It may have failed before it could write that there is a new task to learn.
        return "stopped" if code else "finished", f"followed no longer: {last.reason}"
    if isinstance(last, Stopped):
        return "stopped", last.reason
    if job is not None and job.state == "CANCELLED":
        return "stopped", f"job {job.id} was cancelled"
    retry = next((row.guard for row in reversed(rows) if isinstance(row, Submitted)), None)
    waiting = queue.get(retry) if queue and retry else None
    if waiting is not None and not waiting.over:
        return "pending", "its retry job decides what follows"
    if isinstance(last, Ended):
        if last.code == Preempted.exit_code:
            return "preempted", last.reason
        return ("stopped", _PART_DONE) if last.code == 0 else ("failed", last.reason)
    if isinstance(last, Began) and queue is not None:
        return "failed", f"job {last.job} is not in the queue and recorded no end"
    if isinstance(last, Submitted):
        gone = "" if queue is None else ", and is gone"
        return "unknown", f"job {last.job} was submitted{gone}"
    if at.silence is None:
        return "unknown", "no step yet"
    if at.silence < max(_QUIET_SECONDS, _QUIET_INTERVALS * (at.interval or 0)):
        return "running", ""
    return "stopped", "no step was logged lately"


def _is_own(run: Path) -> bool:
    """Whether this user has submitted a run."""
    try:
        return AttemptLog(run).path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _query(needed: bool) -> tuple[Queue | None, dict[str, tuple[int, int]], str]:
    """(own jobs by number, idle GPUs by partition, why not); only submitted runs need it."""
    if not slurm.available():
        return None, {}, ""
    try:
        return slurm.jobs(), slurm.idle_gpus(), ""
    except KaizenError as error:
        return None, {}, str(error).splitlines()[0] if needed else ""


def _runs_in(folder: Path, depth: int, searched: dict[tuple[int, int], int]) -> Iterator[Path]:
    """A folder that cannot be read may be a run; one that several links lead to is not searched
    again, unless deeper."""
    if any(map(os.path.lexists, (folder / CONFIG, AttemptLog(folder).path))):
        yield folder
        return
    try:
        here = folder.stat()
        if depth <= searched.get((here.st_dev, here.st_ino), 0):
            return
        searched[here.st_dev, here.st_ino] = depth
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        yield folder
        return
    for name in names:
        yield from _runs_in(folder / name, depth - 1, searched)
