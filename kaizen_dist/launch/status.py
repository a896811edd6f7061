"""How runs are doing: what their files tell, and what the queue says of their jobs.

In come folders, out comes a `RunStatus` of every run beneath them. With a cluster, one's own jobs
are asked for in one question; without one, and for a run that somebody else has submitted, a run's
state is told by its files.

    running       a job runs it, or its log has grown lately
    pending       in the queue, and why
    finished      all tasks are learnt
    preempted     told to make room; its job is not in the queue any more
    failed        its last attempt was no good
    stopped       no further attempt follows, and why; of a local run: nothing was heard lately
    damaged       a file that tells cannot be read, which and why
    unknown       nothing tells
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import DataError, KaizenError, Preempted
from kaizen_dist.common.run_layout import CONFIG, SLURM
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempts import FILE, Began, Ended, Ledger, Row, Stopped, Submitted
from kaizen_dist.launch.progress import Standing, standing
from kaizen_dist.launch.slurm import Job

ORDER = ("running", "pending", "damaged", "failed", "stopped", "preempted", "unknown", "finished")
"""In which states are shown: first what goes on, then what needs somebody."""
_DEPTH = 5
_QUIET_SECONDS = 120.0
_QUIET_INTERVALS = 20
"""A local run that has been silent for longer than both has stopped."""


@dataclass(frozen=True)
class RunStatus:
    """One run."""

    run: str
    """Its folder, as found beneath what was given."""
    state: str
    why: str
    job: str | None
    nodes: str
    """Slurm's own short list, e.g. node[1-2]; empty of a local run."""
    restarts: int
    standing: Standing

    def to_json(self) -> dict[str, Any]:
        """Flat: {"run", "state", ..., "task", "step", ...}."""
        return {k: v for k, v in asdict(self).items() if k != "standing"} | asdict(self.standing)


@dataclass(frozen=True)
class Overview:
    """All runs, and the cluster they are on."""

    runs: list[RunStatus]
    idle_gpus: dict[str, tuple[int, int]]
    """Of each partition that has any: (idle, all of the nodes that take jobs)."""
    problem: str = ""
    """Why the queue could not be asked."""

    def to_json(self) -> dict[str, Any]:
        """{"runs": [...], "gpus": {"main": {"idle": 3, "total": 32}}, "problem": ""}"""
        gpus = {name: {"idle": i, "total": t} for name, (i, t) in self.idle_gpus.items()}
        runs = [status.to_json() for status in self.runs]
        return {"runs": runs, "gpus": gpus, "problem": self.problem}


def overview(folders: Sequence[Path], now: float) -> Overview:
    """The runs in and beneath some folders at `now` (seconds since 1970).

    Raises:
        DataError: if there is none.
    """
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    if not runs:
        raise DataError(f"no run in {', '.join(map(str, folders))}; train or submit starts one")
    ledgers = {run: _rows(run) for run in runs}
    queue, gpus, problem = _ask(any(rows for rows, _ in ledgers.values()))
    found = []
    for run, (rows, damage) in ledgers.items():
        own = queue if _is_own(run) else None
        found.append(_with_damage(status_of(run, rows, own, standing(run, now)), damage))
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


def _is_own(run: Path) -> bool:
    """Whether this user has submitted a run, and the queue was asked for its jobs."""
    try:
        return (run / SLURM / FILE).stat().st_uid == os.getuid()
    except OSError:
        return False


def _with_damage(status: RunStatus, damage: str) -> RunStatus:
    """A run's state as it is, if its files can be read, or something is going on anyway."""
    why = "; ".join(said for said in (damage, status.standing.damage) if said)
    if not why:
        return status
    return replace(status, state=status.state if status.state in ORDER[:2] else "damaged", why=why)


def _rows(run: Path) -> tuple[list[Row], str]:
    """A run's ledger, or what is wrong with it: one that is damaged hides no other run."""
    try:
        return Ledger(run / SLURM).rows(), ""
    except DataError as error:
        return [], str(error)


def status_of(
    run: Path, rows: Sequence[Row], queue: Mapping[str, Job] | None, where: Standing
) -> RunStatus:
    """A run by its ledger, the queue's jobs (None: not known) and where it stands."""
    job = current_job(rows, queue or {})
    listed = (queue or {}).get(job) if job else None
    state, why = _state(rows, listed, queue, where)
    nodes = listed.nodes if listed is not None else ""
    if state == "running" and not nodes:
        nodes = ",".join(next((r.nodes for r in reversed(rows) if isinstance(r, Began)), []))
    return RunStatus(str(run), state, why, job, nodes, restarts(rows), where)


def current_job(rows: Sequence[Row], queue: Mapping[str, Job]) -> str | None:
    """The job that matters now: one that runs, else the first that waits, else the last begun."""
    submitted = [row.job for row in rows if isinstance(row, Submitted)]
    begun = [row.job for row in rows if isinstance(row, Began)]
    alive = [job for job in submitted if job in queue and not queue[job].over]
    run = [job for job in alive if queue[job].state != "PENDING"]
    return next(iter([*run, *alive, *begun[-1:], *submitted[-1:]]), None)


def restarts(rows: Sequence[Row]) -> int:
    """Attempts beyond the first one of every link that has begun."""
    task_of = {row.job: row.task for row in rows if isinstance(row, Submitted)}
    begun = [task_of.get(row.job) for row in rows if isinstance(row, Began)]
    return len(begun) - len(set(begun))


def _state(
    rows: Sequence[Row], job: Job | None, queue: Mapping[str, Job] | None, where: Standing
) -> tuple[str, str]:
    """(state, why)"""
    if where.finished:
        return "finished", ""
    if job is not None and not job.over:
        pending = job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD")
        return ("pending", job.reason) if pending else ("running", "")
    last, asked = rows[-1] if rows else None, queue is not None
    if isinstance(last, Stopped):
        return "stopped", last.reason
    if job is not None and job.state == "CANCELLED":
        return "stopped", f"job {job.id} was cancelled"
    if _guarded(rows, queue or {}):
        return "pending", "its guard decides what follows"
    if isinstance(last, Ended):
        if last.code == Preempted.exit_code:
            return "preempted", last.reason
        return ("stopped", "a part is done") if last.code == 0 else ("failed", last.reason)
    if isinstance(last, Began) and asked:
        return "failed", f"job {last.job} is not in the queue and left no word"
    if isinstance(last, Submitted):
        return "unknown", f"job {last.job} was submitted" + (", and is gone" if asked else "")
    return _local_state(where)


def _guarded(rows: Sequence[Row], queue: Mapping[str, Job]) -> bool:
    """Whether the last job's guard is still to come, or at work."""
    guards = [row.guard for row in rows if isinstance(row, Submitted)]
    guard = queue.get(guards[-1] or "") if guards else None
    return guard is not None and not guard.over


def _local_state(where: Standing) -> tuple[str, str]:
    if where.silence is None:
        return "unknown", "no step yet"
    if where.silence < max(_QUIET_SECONDS, _QUIET_INTERVALS * (where.interval or 0)):
        return "running", ""
    return "stopped", "no step was logged lately"


def _ask(needed: bool) -> tuple[dict[str, Job] | None, dict[str, tuple[int, int]], str]:
    """(own jobs by number, idle GPUs by partition, why not); runs that were never submitted do
    not need it."""
    if not slurm.available():
        return None, {}, ""
    try:
        return slurm.jobs(), idle_gpus(), ""
    except KaizenError as error:
        return None, {}, str(error).splitlines()[0] if needed else ""


def idle_gpus() -> dict[str, tuple[int, int]]:
    """Of each partition with GPUs: (idle, all), over the nodes that take jobs.

    Raises:
        KaizenError: if Slurm does not answer.
    """
    columns = "PartitionName:64,NodeList:128,Gres:256,GresUsed:256"
    usable = {node.name for node in slurm.nodes() if node.usable}
    counts: dict[str, tuple[int, int]] = {}
    for line in slurm.ask("sinfo", "-h", "-N", "-O", columns).splitlines():
        partition, node, *gres = (*line.split(), "", "")
        total, used = (slurm.gpus_of(part) for part in (*gres, "")[:2])
        if node in usable and total:
            idle, known = counts.get(partition, (0, 0))
            counts[partition] = idle + max(0, total - used), known + total
    return counts


def _runs_in(folder: Path, depth: int, searched: dict[tuple[int, int], int]) -> Iterator[Path]:
    """One that cannot be read may be a run; one that several links lead to is not searched again,
    unless it is to be searched deeper."""
    if any(os.path.lexists(folder / name) for name in (CONFIG, f"{SLURM}/{FILE}")):
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
