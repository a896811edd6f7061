"""Report which file a rank waits for when a disk, a mount or a server does not answer.

Whoever is about to read wraps it in `waiting_for(name)`. After `report_stalls` a thread checks
these waits and logs, with rank and name, each that takes longer than the given time, and again each
time it has passed. Nothing is ended by it: when a collective's time-out ends the run for all ranks,
the name of the cause has been logged.

A dead mount blocks a system call for ever and nothing can cancel it, so reads must not hold the
interpreter lock meanwhile: `os.pread` releases it, a page fault in a mapping does not.
"""

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
        """Data arrived: start the time anew."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the wait began or last progressed."""
        return time.monotonic() - self._since


class _Watcher(threading.Thread):
    """Checks the waits periodically and logs those beyond the limit."""

    def __init__(self) -> None:
        super().__init__(name="io watchdog", daemon=True)
        self.limit = 0.0
        self._told: dict[str, float] = {}
        """Seconds waited at the last message about each name."""

    def run(self) -> None:
        while True:
            time.sleep(min(1.0, self.limit / 4))
            self._look()

    def _look(self) -> None:
        with _lock:
            # Several threads may wait for one file: the longest wait counts.
            ordered = sorted(_waits, key=lambda wait: wait.seconds)
            waits = {str(wait.what): wait.seconds for wait in ordered}
        for what in [what for what in self._told if waits.get(what, 0.0) < self.limit]:
            say(f"{what} answers again after {self._told.pop(what):.0f} s or more")
        for what, seconds in waits.items():
            if seconds >= self._told.get(what, 0.0) + self.limit:
                self._told[what] = seconds
                say(
                    f"waiting for {what} for {seconds:.0f} s; check whether the disk, mount or "
                    "server it lies on answers. The run goes on when it does"
                )


_watcher: _Watcher | None = None


def report_stalls(seconds: float) -> None:
    """Report waits of `seconds` or more until this process ends. A second call changes the time."""
    global _watcher
    with _lock:
        watcher = _watcher or _Watcher()
        watcher.limit = seconds
        if _watcher is None:
            _watcher = watcher
            watcher.start()
