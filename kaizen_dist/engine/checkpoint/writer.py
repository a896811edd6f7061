"""Asynchronous checkpoints: the state is copied at once and written on a thread.

The ranks write together, over a process group of their own. A failed save is logged and leaves the
checkpoint before it in place; `checkpoint.max_failures` of them in a row end the run. The time that
`save` takes is what checkpoints cost the training, and is measured.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from kaizen_dist.common.console import warn
from kaizen_dist.common.errors import DivergedError, Preempted, WriteError
from kaizen_dist.common.threads import thread_setup
from kaizen_dist.config.schema import CheckpointConfig
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Snapshot
from kaizen_dist.engine.checkpoint import layout

T = TypeVar("T")


class CheckpointWriter:
    """A context that writes a run's checkpoints; its end waits for the last one."""

    def __init__(self, run: Path, config: CheckpointConfig, context: RankContext) -> None:
        self._run, self._config, self._context = run, config, context
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failures = 0
        self._stalled = 0.0

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # A run preempted in an evaluation relies on the save before it.
        if error is None or isinstance(error, Preempted):
            self.wait()
        elif isinstance(error, DivergedError) and self._thread is not None:
            # On all ranks. The state being written may be the one that has diverged.
            self._thread.join()

    def save(self, name: str, snapshot: Callable[[], Snapshot], state: Mapping[str, Any]) -> None:
        """Copy the state and write it as a checkpoint; all ranks together.

        Raises:
            WriteError: if `max_failures` saves in a row have failed.
            DivergedError: if the state of the last call, or with `asynchronous=false` of this one,
                is not finite. It does not become a checkpoint.
        """
        begun = time.monotonic()
        self.wait()
        begin = thread_setup(self._context.device)
        write = partial(self._write, name, snapshot(), dict(state))
        self._thread = threading.Thread(
            target=self._run_thread, args=(begin, write), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self._config.asynchronous:
            self.wait()
        self._stalled += time.monotonic() - begun

    def read_stall(self) -> float:
        """Seconds that training has waited for saves since the last call."""
        stalled, self._stalled = self._stalled, 0.0
        return stalled

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the last save has succeeded or failed. Raises as `save`."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is None:
            self._failures = 0
            return
        if not isinstance(error, WriteError):
            raise error
        self._failures += 1
        if self._failures >= self._config.max_failures:
            raise WriteError(f"{error}; {self._failures} saves in a row have failed")
        if self._context.main:
            warn(
                f"no checkpoint was saved ({error}); training goes on, the checkpoint before it is "
                f"still there, {self._config.max_failures - self._failures} more failures end the "
                "run"
            )

    def _run_thread(self, *works: Callable[[], None]) -> None:
        try:
            for work in works:
                work()
        except BaseException as error:
            self._error = error

    def _write(self, name: str, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
        rank, world, main = self._context.rank, self._context.world_size, self._context.main

        def begin() -> None:
            if main:
                layout.begin(self._run, name)

        def commit() -> None:
            if main:
                layout.commit(folder, {k: v for part in parts for k, v in part.items()})
                layout.prune(self._run, self._config.keep_last, self._config.keep_every)

        folder = layout.hidden(self._run, name)
        if not all(self._together(snapshot.finite)):
            raise DivergedError(f"the model that was to be saved as {name} is not finite")
        self._together(begin)
        self._together(lambda: snapshot.write(folder))
        self._together(lambda: layout.write_state(folder, state) if main else None)
        parts = self._together(lambda: layout.entries(folder, rank, world))
        self._together(commit)

    def _together(self, work: Callable[[], T]) -> list[T]:
        """The results of `work` on every rank, or the same WriteError on all of them."""
        answer: tuple[T | None, str | None]
        try:
            answer = work(), None
        except WriteError as error:
            answer = None, str(error)
        except OSError as error:
            answer = None, f"{error.filename or 'checkpoint'}: {error.strerror or error}"
        answers = self._context.exchange(answer)
        failed = [error for _, error in answers if error is not None]
        if failed:
            raise WriteError(failed[0])
        return [value for value, _ in answers]  # type: ignore[misc]
