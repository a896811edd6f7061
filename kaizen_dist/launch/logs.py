"""Logs of a submitted run: all of its jobs, one of them, or the last one as it grows.

    RUN/slurm/logs/train-JOB.log      the ranks of a job, all its restarts one after the other
    RUN/slurm/logs/JOB_0_log.err      submitit's, of the job's batch shell; shown where the ranks
                                      have written nothing
    RUN/slurm/logs/follow.log         the jobs that look for new tasks, where they found something

Jobs come in the order of their submission, each beneath a header line. `follow` prints new lines,
and goes on to the next job when one begins.
"""

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kaizen_dist.common.console import one_line, printable
from kaizen_dist.common.errors import DataError, Interrupted, UsageError
from kaizen_dist.common.files import open_to_read
from kaizen_dist.common.run_layout import SLURM
from kaizen_dist.launch.attempts import AttemptLog, AttemptRow, Began, Ended, Submitted
from kaizen_dist.launch.job import FOLLOW_LOG, log_of

_POLL_SECONDS = 0.5
_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class JobLog:
    """The log of one job."""

    job: str
    title: str
    candidates: tuple[Path, ...]

    @property
    def path(self) -> Path | None:
        """The first candidate that is a file and not empty."""
        return next(filter(_filled, self.candidates), None)

    @property
    def header(self) -> bytes:
        nothing = "" if self.path is not None else " (no output yet)"
        return f"{one_line(f'==> {self.title}{nothing} <==')}\n".encode()


def chosen(run: Path, number: int | None) -> list[JobLog]:
    """The log of a run's job by its number from 1 (0: the last one with output), or all of them.

    Raises:
        DataError: if the run was never submitted.
        UsageError: if it has fewer jobs.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such folder; name the folder of a run that was submitted")
    rows = AttemptLog(run).rows()
    jobs = [row for row in rows if isinstance(row, Submitted)]
    if not jobs:
        raise DataError(f"{run} was not submitted to a cluster: its output went to the terminal")
    known = [
        JobLog(
            row.job,
            f"attempt {i} of {len(jobs)}: job {row.job}{_summary(row, rows)}",
            (log := log_of(run, row.job), log.with_name(f"{row.job}_0_log.err")),
        )
        for i, row in enumerate(jobs, start=1)
    ]
    if number is None:
        looks = JobLog("follow", "looks for new tasks", (run / SLURM / "logs" / FOLLOW_LOG,))
        return [*known, looks] if looks.path is not None else known
    if number > len(known):
        raise UsageError(f"--attempt {number}: {run} has {len(known)}")
    last = next((log for log in reversed(known) if log.path is not None), known[-1])
    return [known[number - 1] if number else last]


def show(logs: Sequence[JobLog], out: BinaryIO) -> None:
    """Print logs as they are now."""
    for log in logs:
        out.write(log.header)
        if log.path is not None:
            _copy(log.path, 0, out)
    out.flush()


def follow(run: Path, number: int | None, out: BinaryIO) -> None:
    """Print a log, then what is added, until Ctrl-C; without a number go on to a later job as soon
    as that has output."""
    current = chosen(run, number or 0)[0]
    out.write(current.header)
    ends: dict[Path, int] = {}
    with suppress(Interrupted):
        while True:
            if current.path is not None:
                ends[current.path] = _copy(current.path, ends.get(current.path, 0), out)
            out.flush()
            newest = chosen(run, number or 0)[0]
            if newest.job == current.job:
                time.sleep(_POLL_SECONDS)
            else:
                current = newest
                out.write(current.header)


def _filled(path: Path) -> bool:
    """Whether this is a file, not a link, and not empty."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _copy(path: Path, start: int, out: BinaryIO) -> int:
    """Print a file from byte `start` on (from its end, if it is shorter by now); its end.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        file = open_to_read(path, follow=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    with file:
        file.seek(min(start, file.seek(0, os.SEEK_END)))
        while line := file.readline(_LINE_BYTES):
            # Control characters of others are shown, not obeyed.
            out.write(printable(line.decode(errors="backslashreplace")).encode())
        return file.tell()


def _summary(job: Submitted, rows: Sequence[AttemptRow]) -> str:
    """Task, nodes, restarts and end of a job."""
    begun = [row for row in rows if isinstance(row, Began) and row.job == job.job]
    ended = [row for row in rows if isinstance(row, Ended) and row.job == job.job]
    parts = [] if job.task is None else [f"task {job.task + 1}"]
    parts += [f"on {','.join(begun[-1].nodes)}"] if begun else []
    parts += [f"started {len(begun)} times"] if len(begun) > 1 else []
    parts += [ended[-1].reason] if ended else []
    return "".join(f", {part}" for part in parts)
