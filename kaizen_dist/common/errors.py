"""Errors that a user can cause or cure, each with the exit code of the command.

Their messages name the file, field or rank and the cure. The command prints the message without a
traceback; any other exception is a defect of this package and keeps its traceback.
"""


class KaizenError(Exception):
    """Base of all expected errors; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(KaizenError):
    """Bad usage or configuration (exit 2)."""

    exit_code = 2


class DataError(KaizenError):
    """Bad data: a stream or source that is missing, broken or fails its checksums (exit 3)."""

    exit_code = 3


class WriteError(KaizenError):
    """A file cannot be written: full disk, no permission (exit 4)."""

    exit_code = 4


class DivergedError(KaizenError):
    """The training has diverged to non-finite numbers, on all ranks alike (exit 1).

    `step` is the (task, step) of the first non-finite loss, or None if the model itself is not
    finite after a step whose loss was.
    """

    def __init__(self, what: str, step: tuple[int, int] | None = None) -> None:
        super().__init__(what)
        self.step = step


class PeerError(KaizenError):
    """Another rank ended or went silent, so this one cannot go on (exit 1)."""


class Preempted(BaseException):
    """Stopped by a signal with all saved; the same command resumes (exit 75)."""

    exit_code = 75


class Interrupted(BaseException):
    """Ctrl-C (exit 130); not a KeyboardInterrupt, which the command line's library swallows."""

    exit_code = 130
