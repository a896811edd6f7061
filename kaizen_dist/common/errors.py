"""The errors a user can meet, each with the exit code the command ends with.

Everything that is the user's to mend is raised as one of these, with a message that
names the file, field or rank and the cure. The command prints the message without a
traceback; anything else that escapes is a defect of this package and keeps its traceback.
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
    """Something could not be written: full disk, no permission (exit 4)."""

    exit_code = 4


class DivergedError(KaizenError):
    """The training has left the finite numbers, on all ranks alike (exit 1).

    `step` is the (task, step) of the first loss that is not finite, or None where the model itself
    is not, after a step whose loss was.
    """

    def __init__(self, what: str, step: tuple[int, int] | None = None) -> None:
        super().__init__(what)
        self.step = step


class PeerError(KaizenError):
    """Another rank ended or went silent, so this one cannot go on (exit 1)."""


class Preempted(BaseException):
    """Asked by a signal to stop, and stopped with all saved: run me again (exit 75)."""

    exit_code = 75


class Interrupted(BaseException):
    """Ctrl-C (exit 130); not a KeyboardInterrupt, which the command line's library swallows."""

    exit_code = 130
