"""A Slurm cluster as a place where the runs of a sweep run: every run is a job with a guard.

Runs are submitted as `kaizen-dist submit` does it, and so survive what the queue does to them by
themselves. A sweep only submits and looks on: it may end at any moment, and the same command
takes up what is in the queue.
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
from kaizen_dist.sweep.executors import Job
from kaizen_dist.sweep.log_tail import last_error

LOOK_SECONDS = 10.0
"""How often the queue is asked, once for all runs: it serves others too."""
_BAD_ENDS = ("failed", "stopped", "preempted", "damaged")


class SlurmPlace:
    """The cluster of this login node; at most `jobs` runs (None: all) in its queue at a time."""

    keeps = True

    def __init__(self, asked: Resources, jobs: int | None = None) -> None:
        self.capacity = jobs or sys.maxsize
        self.world_size = asked.world_size
        self._asked = asked
        self._runs: dict[str, SlurmRun] = {}
        self._looked = time.monotonic()

    def problems(self, out: Path) -> list[str]:
        """Whatever would stand against any run: no cluster, no such partition, a local disk."""
        root = out.resolve() / "runs"
        job = SubmittedRun(root=root, stream="", tasks=1, chain=False, resources=self._asked)
        options = submission.attempt_options(job)
        return request.misfits(job, options, "sweep on this machine leave --slurm out")

    def start(self, job: Job) -> "SlurmRun":
        """Submit a run, or take it up where it is in the queue already.

        Raises:
            UsageError, WriteError: what `kaizen-dist submit` has against it.
            KaizenError: if the cluster refuses.
        """
        root = job.out.resolve()
        if not submission.running(root):
            stream = Stream.open(job.stream)
            asked = request.job_for(job.config, stream, root, self._asked, chain=False)
            request.submit(asked, job.config)
        run = self._runs[str(root)] = SlurmRun(self, root)
        return run

    def look(self) -> None:
        """Ask the queue how all runs are doing, unless that was not long ago."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        watched = [run for run in self._runs.values() if run.code is None]
        try:
            seen = overview([run.root for run in watched], time.time())
        except KaizenError as error:
            trouble = str(error)
        else:
            trouble = seen.problem
            by_root = {found.run: found for found in seen.runs}
            for run in watched:
                run.note(by_root.get(str(run.root)), asked=not trouble)
        for run in watched:
            run.trouble = trouble


class SlurmRun:
    """A run in the queue."""

    def __init__(self, place: SlurmPlace, root: Path) -> None:
        self.root = root
        self.code: int | None = None
        self.trouble = ""
        """Why the queue could not be asked."""
        self._place = place
        self._status: RunStatus | None = None

    def note(self, found: RunStatus | None, asked: bool) -> None:
        """What a look has found. A bad end is believed when a second look sees it too: in between
        a guard may have submitted the run again."""
        before, self._status = self._status, found
        if found is None:
            return
        if found.state == "finished":
            self.code = 0
            return
        seen_twice = before is not None and (before.job, before.state) == (found.job, found.state)
        if asked and found.state in _BAD_ENDS and seen_twice:
            self.code = _last_code(self.root)

    def poll(self) -> int | None:
        self._place.look()
        return self.code

    def says(self) -> str:
        if self.trouble:
            return f"the queue cannot be asked: {self.trouble}"
        seen = self._status
        if seen is None:
            return "in the queue"
        words = [f"job {seen.job}", seen.state, seen.why, seen.nodes, _where(seen)]
        return " ".join(word for word in words if word)

    def error(self) -> str:
        seen = self._status
        why = seen.why if seen is not None else ""
        log = None if seen is None or seen.job is None else log_of(self.root, seen.job)
        said = last_error(log) if log is not None and log.exists() else ""
        return "; ".join(part for part in (why, said) if part) or "it left no word"

    def stop(self) -> None:
        """Nothing: a place that keeps its runs leaves them in the queue."""

    def kill(self) -> None:
        """Nothing, as above."""


def _last_code(root: Path) -> int:
    """The code with which the last attempt ended, as far as one was noted; else 1."""
    try:
        rows = AttemptLog(root).rows()
    except DataError as error:
        return error.exit_code
    ends = [row.code for row in rows if isinstance(row, Ended)]
    return next((code for code in reversed(ends) if code), 1)


def _where(seen: RunStatus) -> str:
    at = seen.progress
    if at.task is None or at.step is None:
        return ""
    return f"task {at.task + 1}/{at.tasks} step {at.step}/{at.steps}"
