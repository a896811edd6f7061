"""SIGTERM, SIGUSR1 and SIGUSR2 from the first moment of a process on.

By default they end a process, and a batch system sends them when it likes: also while torch is
imported or the ranks look for each other. `listen` notes them from then on; who trains asks what
was `noted` once it can stop well, and all others `release` them. Nothing heavy is imported here.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_noted: list[signal.Signals] = []


def listen() -> None:
    """From now on note the signals instead of ending by them, but for a SIGTERM after another."""
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
    """Whether a signal that follows another ends the process at once: SIGTERM does. The others
    are warnings, which launcher and batch system may both pass on."""
    return number == signal.SIGTERM


def _note(number: int, _frame: FrameType | None) -> None:
    if _noted and insists(number):
        os._exit(128 + number)
    _noted.append(signal.Signals(number))
