"""SIGTERM, SIGUSR1 and SIGUSR2 from the first moment of a process on.

By default they end a process, and a batch system sends them when it likes: also while torch is
imported or the ranks look for each other. `listen` notes them from then on; who trains asks what
was `noted` once it can stop well, and all others `release` them. Nothing heavy is imported here.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_ECHO_SECONDS = 1.0

_noted: list[signal.Signals] = []
_terminated: float | None = None
"""When the first SIGTERM came (monotonic clock)."""


def listen() -> None:
    """From now on note the signals instead of ending by them, but for one that `insists`."""
    for number in SIGNALS:
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def held() -> Iterator[None]:
    """Keep the signals waiting: here until the context is left, and in a process that is started
    within it until that one listens."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let the signals do what they do by default; one that was noted does it now."""
    for number in SIGNALS:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_DFL)
    while _noted:
        os.kill(os.getpid(), _noted.pop())


def noted() -> signal.Signals | None:
    """The first signal that came since `listen` and before somebody else heard them."""
    return _noted[0] if _noted else None


def insists(number: int) -> bool:
    """Whether a signal, of which every one has to be asked, is to end the process at once.

    A second SIGTERM is. Not one that comes within a moment of the first: where a batch system
    ends a job, each rank hears it twice, from it and from the launcher that passes it on. Nor one
    after a SIGUSR1 or SIGUSR2, which were its warning.
    """
    global _terminated
    if number != signal.SIGTERM:
        return False
    if _terminated is None:
        _terminated = time.monotonic()
    return time.monotonic() - _terminated > _ECHO_SECONDS


def _note(number: int, _frame: FrameType | None) -> None:
    if insists(number):
        os._exit(128 + number)
    _noted.append(signal.Signals(number))
