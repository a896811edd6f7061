"""An attempt: the process in a job's batch shell that starts the ranks and records how they end.

submitit starts it, once a job; srun starts the ranks. A signal before the time limit or before a
preemption reaches the ranks themselves: they save and exit with 75, and the attempt requeues its
job. After any other failure the job fails, and its retry job decides what follows (submission.py).
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
from typing import Any

from kaizen_dist.common.errors import KaizenError, Preempted
from kaizen_dist.distributed.store import SIGNING_VARIABLE, new_secret
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempts import (
    AttemptLog,
    Began,
    Ended,
    Position,
    Stopped,
    now,
    stop_reason,
)
from kaizen_dist.launch.job import SubmittedRun, log_of

_LOST = re.compile(
    r"srun: error: (?:Node failure on (?P<failed>[\w.,\[\]-]+)"
    r"|(?P<killed>[\w.-]+): tasks? [\d,-]+: (?:Killed|Bus error))"
)
"""srun's lines about a node that failed, and about one whose ranks were killed."""
_REQUEUE_SECONDS = 120.0
_ENDS = {0: "finished", 2: "bad configuration", 3: "bad data", 4: "cannot write", 75: "preempted"}


@dataclass(frozen=True)
class Attempt:
    """The work of one job: the whole run, or one task of it. submitit pickles it: plain data."""

    root: str
    """The run's folder."""
    task: int | None
    """Train up to the end of this task; None: all tasks."""

    def __call__(self) -> str:
        """Run the ranks to their end; the reason of a good end.

        Raises:
            KaizenError: for any other end; the job then fails.
        """
        signals = SignalRecord()
        job, number = SubmittedRun.read(Path(self.root)), os.environ["SLURM_JOB_ID"]
        log, train_log = AttemptLog(job.root), log_of(job.root, number)
        stop = stop_reason(log.rows(), position(job.root), job.resources.retries, current=number)
        if stop is not None:
            log.append(Stopped(job=number, time=now(), reason=stop))
            raise KaizenError(stop)

        def facts() -> dict[str, Any]:
            restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            at = position(job.root)
            return {"job": number, "time": now(), "restart": restart, "position": at}

        nodes = slurm.ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"])
        log.append(Began(**facts(), nodes=nodes.split()))
        code, lost = run_ranks(job.srun(job.train(self.task), train_log), job)
        reason = _ENDS.get(code, f"ended with code {code}")
        if signals.ending and code not in _ENDS:
            # Slurm is ending the whole job: no node is to blame.
            reason, lost = "ended by the queue", []
        recorded = f"lost {', '.join(lost)}" if lost else reason
        log.append(Ended(**facts(), code=code, reason=recorded, bad_nodes=lost))
        if code == Preempted.exit_code:
            requeue(number)
        if code:
            raise KaizenError(f"{reason}; the ranks' output is in {train_log}")
        return reason


class SignalRecord:
    """Note signals instead of ending by them: Slurm sends them to the whole job, they are meant for
    the ranks, and this process ends when the ranks have ended."""

    def __init__(self) -> None:
        self._terminated = False
        self._parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            # A handler, not SIG_IGN: srun would inherit that.
            signal.signal(number, self._note)

    @property
    def ending(self) -> bool:
        """Whether SIGTERM came, or the batch shell is gone."""
        return self._terminated or os.getppid() != self._parent

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._terminated = self._terminated or number == signal.SIGTERM


def position(root: Path) -> Position:
    """(task, step) of a run's newest checkpoint; None before the first."""
    found = layout.found(root)
    return layout.position(found[-1]) if found else None


def run_ranks(command: list[str], job: SubmittedRun) -> tuple[int, list[str]]:
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
            # The first one is the cause; later ones may be its consequence.
            if match is not None and not lost:
                lost = [str(match["failed"] or match["killed"])]
    return srun.returncode, lost


def requeue(number: str) -> None:
    """Requeue this job, which ends this process, unless Slurm is ending the job already: a
    cancelled job stays cancelled, a requeued one comes back by itself, and for all others there is
    the retry job.

    Raises:
        KaizenError: if the job ends otherwise, or the cluster does not allow it.
    """
    found = slurm.jobs().get(number)
    if found is None or found.state == "COMPLETING" or found.over:
        raise KaizenError(f"job {number} was ended by the queue, with all saved")
    slurm.ask("scontrol", "requeue", number)
    time.sleep(_REQUEUE_SECONDS)
    raise KaizenError(f"job {number} was to be requeued, but still runs")
