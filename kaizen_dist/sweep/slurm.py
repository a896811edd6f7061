"""Executor for a Slurm cluster: every run of a sweep is a job with its retry job.

Runs are submitted as by `kaizen-dist submit`, so they survive preemption, time limits and failures
by themselves. A sweep only submits and watches: it may end at any moment, and the same command
continues with what is in the queue.
"""

import sys
import time
from pathlib import Path

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.launch import request, submission
from kaizen_dist.launch.attempts import AttemptLog, Ended
from kaizen_dist.launch.job import SubmittedRun, log_of
from kaizen_dist.launch.resources import Resources
from kaizen_dist.launch.status import RunStatus, overview
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.sweep.executors import SweepJob, last_error

LOOK_SECONDS = 10.0
"""Interval of queries to the queue, one for all runs: it serves others too."""
_BAD_ENDS = ("failed", "stopped", "preempted", "damaged")


class SlurmExecutor:
    """The cluster of this login node; at most `jobs` runs (None: all) in its queue at a time."""

    detached = True

    def __init__(self, asked: Resources, jobs: int | None = None) -> None:
        self.capacity = jobs or sys.maxsize
        self.world_size = asked.world_size
        self._asked = asked
        self._runs: dict[Path, QueuedRun] = {}
        self._looked = time.monotonic()

    def problems(self, out: Path) -> list[str]:
        root = out.resolve() / "runs"
        job = SubmittedRun(root=root, stream="", tasks=1, chain=False, resources=self._asked)
        options = submission.attempt_options(job)
        return request.misfits(job, options, "sweep on this machine leave --slurm out")

    def start(self, job: SweepJob) -> "QueuedRun":
        """Submit a run, or continue to watch it where it is in the queue already.

        Raises:
            UsageError, WriteError: if `kaizen-dist submit` refuses it.
            KaizenError: if the cluster refuses.
        """
        root = job.out.resolve()
        if not submission.running(root):
            stream = Stream.open(job.stream)
            asked = request.job_for(job.config, stream, root, self._asked, chain=False)
            request.submit(asked, job.config)
        run = self._runs[root] = QueuedRun(self, root)
        return run

    def look(self) -> None:
        """Query the state of all runs, unless that was not long ago."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        watched = [run for run in self._runs.values() if run.code is None]
        try:
            seen = overview([run.root for run in watched], time.time())
            found, problem = {status.run: status for status in seen.runs}, seen.problem
        except KaizenError as error:
            found, problem = {}, str(error)
        for run in watched:
            run.update(found.get(str(run.root)), problem)


class QueuedRun:
    """A run in the queue."""

    def __init__(self, executor: SlurmExecutor, root: Path) -> None:
        self.root = root
        self.code: int | None = None
        self._executor = executor
        self._status: RunStatus | None = None
        self._problem = ""
        """Why the queue could not be queried."""

    def update(self, status: RunStatus | None, problem: str) -> None:
        """Note a new status. A bad end counts when two queries in a row see it: in between the
        retry job may have submitted the run again."""
        before, self._status, self._problem = self._status, status, problem
        if status is None:
            return
        repeated = before is not None and (before.job, before.state) == (status.job, status.state)
        if status.state == "finished":
            self.code = 0
        elif status.state in _BAD_ENDS and repeated and not problem:
            self.code = _last_code(self.root)

    def poll(self) -> int | None:
        self._executor.look()
        return self.code

    def note(self) -> str:
        seen = self._status
        if self._problem:
            return f"the queue cannot be queried: {self._problem}"
        if seen is None:
            return "in the queue"
        at = seen.progress
        place = f"task {(at.task or 0) + 1}/{at.tasks} step {at.step}/{at.steps}"
        place = "" if at.step is None else place
        return " ".join(filter(None, [f"job {seen.job}", seen.state, seen.why, seen.nodes, place]))

    def error(self) -> str:
        seen = self._status
        log = None if seen is None or seen.job is None else log_of(self.root, seen.job)
        said = last_error(log) if log is not None and log.exists() else ""
        return "; ".join(filter(None, [seen.why if seen else "", said])) or "no output"

    def stop(self) -> None:
        """Nothing: the run stays in the queue."""

    def kill(self) -> None:
        """Nothing, as above."""


def _last_code(root: Path) -> int:
    """The last exit code other than 0 in a run's attempt log; else 1."""
    try:
        rows = AttemptLog(root).rows()
    except DataError as error:
        return error.exit_code
    ends = (row.code for row in reversed(rows) if isinstance(row, Ended))
    return next(filter(None, ends), 1)
