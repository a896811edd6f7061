"""Says which file a rank waits for when a disk, a mount or a server does not answer.

Whoever is about to read wraps it in `waiting_for(name)`; once `report_stalls` has been called,
a thread looks at what is being waited for and, after the given time and again each time it
has passed, prints a line with rank and name on standard error. Nothing is ended by it: when
a collective's time-out ends the run for everybody, the name of the cause is already there.

A dead mount holds a system call for ever and nothing can call it back, so what reads must not
keep the interpreter lock meanwhile: `os.pread` gives it up, a page fault in a mapping does not.
"""

import os
import threading
import time
from types import TracebackType

from kaizen_dist.common.console import say

_waits: "set[waiting_for]" = set()
_lock = threading.Lock()


class waiting_for:
    """A context in which this thread waits for `what`, a file or a URL; threads may nest them."""

    __slots__ = ("_since", "what")

    def __init__(self, what: object) -> None:
        self.what = what

    def __enter__(self) -> "waiting_for":
        self._since = time.monotonic()
        with _lock:
            _waits.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with _lock:
            _waits.discard(self)

    def progressed(self) -> None:
        """Something came: the time counts anew."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has waited, since it last progressed."""
        return time.monotonic() - self._since


class _Watcher(threading.Thread):
    """Looks at what is waited for, again and again, and tells of what takes too long."""

    def __init__(self) -> None:
        super().__init__(name="stall watcher", daemon=True)
        self.limit = 0.0
        self._rank = os.environ.get("RANK", "0")
        self._told: dict[str, float] = {}
        """What has been told of, and how long it had been waited for by then."""

    def run(self) -> None:
        while True:
            time.sleep(min(1.0, self.limit / 4))
            self._look()

    def _look(self) -> None:
        with _lock:
            # Several threads may wait for one file: the one that waits longest speaks.
            ordered = sorted(_waits, key=lambda wait: wait.seconds)
            waits = {str(wait.what): wait.seconds for wait in ordered}
        for what in [what for what in self._told if waits.get(what, 0.0) < self.limit]:
            self._say(f": {what} answers again after {self._told.pop(what):.0f} s or more")
        for what, seconds in waits.items():
            if seconds >= self._told.get(what, 0.0) + self.limit:
                self._told[what] = seconds
                self._say(
                    f" has been waiting for {what} for {seconds:.0f} s; see whether the disk, "
                    "mount or server it lies on answers. The run goes on when it does"
                )

    def _say(self, text: str) -> None:
        say(f"rank {self._rank}{text}")


_watcher: _Watcher | None = None


def report_stalls(seconds: float) -> None:
    """From now on, and for as long as this process lives, reports what takes `seconds` or more.

    A second call changes the time.
    """
    global _watcher
    with _lock:
        watcher = _watcher or _Watcher()
        watcher.limit = seconds
        if _watcher is None:
            _watcher = watcher
            watcher.start()
