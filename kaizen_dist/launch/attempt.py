"""An attempt: what runs in a job's batch shell. It starts the ranks and says how they ended.

submitit starts it, once for a job; srun starts the ranks. A signal that comes before the time
limit or before a preemption reaches the ranks themselves: they save and exit with 75, and the
attempt puts its job back into the queue. For any other end but a good one the job fails, and
its guard decides what follows (guard.py).
"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kaizen_dist.common.errors import KaizenError, Preempted
from kaizen_dist.distributed.store import SIGNING_VARIABLE, new_secret
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempts import Began, Ended, Ledger, Position, Stopped, now, verdict
from kaizen_dist.launch.job import Job, Srun

_LOST = re.compile(
    r"srun: error: (?:Node failure on (?P<failed>[\w.,\[\]-]+)"
    r"|(?P<killed>[\w.-]+): tasks? [\d,-]+: (?:Killed|Bus error))"
)
"""What srun says of a node that went away, and of one whose ranks were killed."""
_REQUEUE_SECONDS = 120.0
_WHY = {0: "finished", 2: "bad configuration", 3: "bad data", 4: "cannot write", 75: "preempted"}


@dataclass(frozen=True)
class Attempt:
    """A job's work: the whole run, or one task of it. Called by submitit, so plain data."""

    root: str
    """The run's folder."""
    task: int | None
    """A chain's link trains up to the end of this one; None = all tasks."""

    def __call__(self) -> str:
        """Run it to its end, and return why that was a good one.

        Raises:
            KaizenError: if it was not; the job then fails.
        """
        told = Told()
        job, number = Job.read(Path(self.root)), job_number()
        ledger, restart = Ledger(job.folder), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        stop = verdict(ledger.rows(), position(job.root), job.resources.retries, current=number)
        if stop is not None:
            ledger.append(Stopped(job=number, time=now(), reason=stop))
            raise KaizenError(stop)
        ledger.append(
            Began(
                job=number,
                time=now(),
                restart=restart,
                nodes=slurm.expand(os.environ["SLURM_JOB_NODELIST"]),
                position=position(job.root),
            )
        )
        code, lost = run_ranks(Srun(job, job.log(number)).command(job.train(self.task)), job)
        reason = _WHY.get(code, f"ended with code {code}")
        if told.to_end and code not in _WHY:
            # Slurm is taking the whole job away, and no node is to blame.
            reason, lost = "ended by the queue", []
        ledger.append(
            Ended(
                job=number,
                time=now(),
                restart=restart,
                code=code,
                reason=f"lost {', '.join(lost)}" if lost else reason,
                position=position(job.root),
                bad_nodes=lost,
            )
        )
        if code == Preempted.exit_code:
            put_back(number)
        if code:
            raise KaizenError(f"{reason}; what the ranks said is in {job.log(number)}")
        return reason


class Told:
    """Whether this process was told to end, or left behind by its batch shell. It goes on: such
    signals go to the whole job, are meant for the ranks, and it is their end that ends us."""

    def __init__(self) -> None:
        self._signalled = False
        self._parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            # A function: unlike what is ignored, it is not handed on to srun.
            signal.signal(number, self._hear)

    @property
    def to_end(self) -> bool:
        return self._signalled or os.getppid() != self._parent

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._signalled = self._signalled or number == signal.SIGTERM


def job_number() -> str:
    """This job's number, as Slurm shows it: 17, or 17_3 in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def position(root: Path) -> Position:
    """Where a run stands: (task, step) of its newest checkpoint; None before the first."""
    found = layout.found(root)
    return layout.position(found[-1]) if found else None


def run_ranks(command: list[str], job: Job) -> tuple[int, list[str]]:
    """Start the ranks and wait for them: srun's exit code, and the nodes that were lost."""
    environment = os.environ | {SIGNING_VARIABLE: new_secret()} | job.resources.environment
    lost: list[str] = []
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as srun:
        assert srun.stderr is not None
        for line in srun.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            match = _LOST.search(line)
            # The first is the cause; what srun says of others may be its consequence.
            if match is not None and not lost:
                lost = [str(match["failed"] or match["killed"])]
    return srun.returncode, lost


def put_back(number: str) -> None:
    """Requeue this job, which ends this process, unless Slurm is ending the job already: what was
    cancelled stays so, what is requeued comes back by itself, and a guard sees to the rest.

    Raises:
        KaizenError: if the job ends otherwise, or the cluster does not allow it.
    """
    found = slurm.job(number)
    if found is None or found.state == "COMPLETING" or found.over:
        raise KaizenError(f"job {number} was ended by the queue, with all saved")
    slurm.requeue(number)
    time.sleep(_REQUEUE_SECONDS)
    raise KaizenError(f"job {number} was to be requeued, but still runs")
