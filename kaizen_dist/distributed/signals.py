"""SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 from the start of a process on.

By default they end a process, and a batch system sends them at any time: also while torch is
imported or the ranks look for each other. `listen` records all but Ctrl-C from then on; a training
asks for the `noted` one once it can stop well, and every other command `release`s them. Ctrl-C ends
the process at once, with a line and 130, except where it is `interruptible`. Nothing heavy is
imported here.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kaizen_dist.common.errors import Interrupted

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_ECHO_SECONDS = 1.0

_noted: list[signal.Signals] = []
_first: dict[int, float] = {}
"""Time of the first SIGTERM and of the first SIGINT (monotonic clock)."""


def listen() -> None:
    """From now on record the signals instead of ending by them, but for one that `insists`."""
    signal.signal(signal.SIGINT, _end)
    for number in SIGNALS:
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, *SIGNALS))


@contextmanager
def held() -> Iterator[None]:
    """Block the signals: here until the context is left, and in a process that is started within
    it until that process listens."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *SIGNALS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C raises Interrupted in the main thread, so that what is open is closed; a
    second one ends the process at once."""
    before = sys.unraisablehook
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
        sys.unraisablehook = before


def say_interrupted() -> None:
    """Print one line, on the first rank."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"interrupted; the same command goes on where it can\n")


def release() -> None:
    """Restore the default actions; a recorded signal takes effect now."""
    for number in SIGNALS:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_DFL)
    while _noted:
        os.kill(os.getpid(), _noted.pop())


def noted() -> signal.Signals | None:
    """The first signal recorded since `listen`, before other handlers were set."""
    return _noted[0] if _noted else None


def insists(number: int) -> bool:
    """Whether a signal ends the process at once; to be called for every signal.

    A second SIGTERM or SIGINT does. Not one within a moment of the first: when a batch system or a
    terminal ends a job, each rank gets the signal twice, from it and from the launcher that
    forwards it. Nor one after a SIGUSR1 or SIGUSR2, which were its warning.
    """
    if number not in (signal.SIGTERM, signal.SIGINT):
        return False
    now = time.monotonic()
    return now - _first.setdefault(number, now) > _ECHO_SECONDS


def _note(number: int, _frame: FrameType | None) -> None:
    if insists(number):
        os._exit(128 + number)
    _noted.append(signal.Signals(number))


def _raise(number: int, frame: FrameType | None) -> None:
    first = number not in _first
    # An exception during an import may be swallowed, or abort a library written in C++.
    if insists(number) or _importing(frame):
        _end()
    if first:
        raise Interrupted


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(told: "UnraisableHookArgs") -> None:
    """End where Python would only print Interrupted: in a destructor, in a callback."""
    if issubclass(told.exc_type, Interrupted):
        _end()
    sys.__unraisablehook__(told)


def _end(_number: int = 0, _frame: FrameType | None = None) -> NoReturn:
    try:
        say_interrupted()
    finally:
        os._exit(Interrupted.exit_code)
