"""A guard: a job that waits for another one to fail, and then decides what follows.

It runs wherever Slurm puts it, so that it is there when the batch shell, or the node it ran on,
is not. It reads the ledger and how far the run has come: either it submits the job again (and
the rest of its chain), without the nodes that have failed, or it writes down why not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempt import job_number, position
from kaizen_dist.launch.attempts import (
    Began,
    Ledger,
    Stopped,
    Submitted,
    bad_nodes,
    now,
    verdict,
)
from kaizen_dist.launch.job import Job


@dataclass(frozen=True)
class Guard:
    """Called by submitit in the guard's job, so plain data."""

    root: str
    """The run's folder."""
    number: str
    """The job that has failed."""

    def __call__(self) -> str:
        """Submit again, or stop; a line that says which."""
        # It makes guards, and this one makes jobs.
        from kaizen_dist.launch.submission import links, submit

        job = Job.read(Path(self.root))
        ledger = Ledger(job.folder)
        rows = ledger.rows()
        if not any(isinstance(row, Began) and row.job == self.number for row in rows):
            return f"job {self.number} never began: it was taken out of the queue"
        if isinstance(rows[-1], Stopped):
            return f"stopped: {rows[-1].reason}"
        found = slurm.job(self.number)
        stop = verdict(rows, position(job.root), job.resources.retries)
        if found is not None and found.state == "CANCELLED":
            stop = f"job {self.number} was cancelled"
        if stop is not None:
            ledger.append(Stopped(job=job_number(), time=now(), reason=stop))
            return f"stopped: {stop}"
        task = next(
            row.task for row in rows if isinstance(row, Submitted) and row.job == self.number
        )
        left_out = affordable(job, bad_nodes(rows))
        again = submit(job, [None] if task is None else links(job, task), left_out)
        return f"submitted again: {', '.join(again)}, without {', '.join(left_out) or 'no node'}"


def affordable(job: Job, failed: Sequence[str]) -> list[str]:
    """Of the nodes that have failed the latest ones, as many as the partition can do without."""
    names = _of_partition(job)
    up = {node.name for node in slurm.nodes() if node.usable and node.name in names}
    spare = len(up - set(job.resources.exclude)) - job.resources.nodes
    chosen: list[str] = []
    for name in reversed(failed):
        spare -= name in up
        if spare < 0:
            break
        chosen.append(name)
    return chosen[::-1]


def _of_partition(job: Job) -> set[str]:
    for partition in slurm.partitions():
        if partition.name == job.resources.partition or (
            job.resources.partition is None and partition.default
        ):
            return set(partition.nodes)
    raise KaizenError(f"there is no partition {job.resources.partition or 'by default'}")
