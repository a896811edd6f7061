"""The logs of a submitted run: what its ranks said, attempt by attempt.

    RUN/slurm/logs/train-JOB.log      the ranks of a job, all its restarts one after the other
    RUN/slurm/logs/JOB_0_log.err      submitit's, of the job's batch shell; shown where there is
                                      no other, for a job that ended before its ranks began

Jobs come in the order in which they were submitted, each beneath a line that says which it is.
`follow` prints what is added, and goes on to the next job when one begins.
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
from kaizen_dist.launch.attempts import Began, Ended, Ledger, Row, Submitted
from kaizen_dist.launch.job import log_of

_POLL_SECONDS = 0.5
_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Attempt:
    """A job of a run, and where its words are."""

    number: int
    """From 1."""
    job: str
    title: str
    paths: tuple[Path, ...]

    @property
    def log(self) -> Path | None:
        """The first of its files that is there and not empty."""
        return next(filter(_filled, self.paths), None)


def attempts(run: Path) -> list[Attempt]:
    """The jobs of a run, oldest first.

    Raises:
        DataError: if it was never submitted.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such folder; name the folder of a run that was submitted")
    folder = run / SLURM
    rows = Ledger(folder).rows()
    jobs = [row for row in rows if isinstance(row, Submitted)]
    if not jobs:
        raise DataError(f"{run} was not submitted to a cluster: its words went to the terminal")
    logs = folder / "logs"
    return [
        Attempt(
            number,
            row.job,
            f"attempt {number} of {len(jobs)}: job {row.job}{_story(row, rows)}",
            (log_of(run, row.job), logs / f"{row.job}_0_log.err"),
        )
        for number, row in enumerate(jobs, start=1)
    ]


def chosen(run: Path, number: int | None) -> list[Attempt]:
    """One of a run's attempts (0: the last that has begun to write), or all.

    Raises:
        DataError: if it was never submitted.
        UsageError: if there are not so many.
    """
    known = attempts(run)
    if number is None:
        return known
    if number == 0:
        return [next((a for a in reversed(known) if a.log is not None), known[-1])]
    if number > len(known):
        raise UsageError(f"--attempt {number}: {run} has {len(known)}")
    return [known[number - 1]]


def show(chosen_ones: Sequence[Attempt], out: BinaryIO) -> None:
    """Print the attempts' logs as they are now."""
    for attempt in chosen_ones:
        _say(_header(attempt), out)
        if attempt.log is not None:
            _copy(attempt.log, 0, out)


def follow(run: Path, number: int | None, out: BinaryIO) -> None:
    """Print what is there, then what is added, until Ctrl-C.

    Without a number it goes on to a later attempt as soon as that has something to say.
    """
    current = chosen(run, number or 0)[0]
    _say(_header(current), out)
    said: dict[Path, int] = {}
    with suppress(Interrupted):
        while True:
            if current.log is not None:
                said[current.log] = _copy(current.log, said.get(current.log, 0), out)
            newest = current if number else chosen(run, 0)[0]
            if newest.job != current.job:
                current = newest
                _say(_header(current), out)
            else:
                time.sleep(_POLL_SECONDS)


def _header(attempt: Attempt) -> str:
    nothing = "" if attempt.log is not None else " (it has said nothing yet)"
    return f"==> {attempt.title}{nothing} <=="


def _say(line: str, out: BinaryIO) -> None:
    out.write(f"{one_line(line)}\n".encode())
    out.flush()


def _filled(path: Path) -> bool:
    """Whether this is a file, and no link, in which something stands."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _copy(path: Path, start: int, out: BinaryIO) -> int:
    """Print a file from a byte on; where it ends now. One that was made anew has no such byte.

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
            # What others wrote is shown, and does not command the terminal.
            out.write(printable(line.decode(errors="backslashreplace")).encode())
        out.flush()
        return file.tell()


def _story(job: Submitted, rows: Sequence[Row]) -> str:
    """What became of a job, in a few words."""
    begun = [row for row in rows if isinstance(row, Began) and row.job == job.job]
    ended = [row for row in rows if isinstance(row, Ended) and row.job == job.job]
    told = "" if job.task is None else f", task {job.task + 1}"
    if begun:
        told += f", on {','.join(begun[-1].nodes)}"
        told += f", started {len(begun)} times" if len(begun) > 1 else ""
    if ended:
        told += f", {ended[-1].reason}"
    return told
