"""Asynchronous checkpoints: the state is copied at once and written on a thread.

The ranks write together, over a process group of their own. A failed save is logged and leaves the
checkpoint before it in place; `checkpoint.max_failures` of them in a row end the run. The time that
`save` takes is what checkpoints cost the training, and is measured.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from kaizen_dist.common.console import warn
from kaizen_dist.common.errors import DivergedError, Preempted, WriteError
from kaizen_dist.common.inventory import Inventory
from kaizen_dist.common.threads import run_in_thread, thread_setup
from kaizen_dist.config.schema import CheckpointConfig
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Snapshot
from kaizen_dist.engine.checkpoint import layout

T = TypeVar("T")


class CheckpointWriter:
    """A context that writes a run's checkpoints; its end waits for the last one."""

    def __init__(self, run: Path, config: CheckpointConfig, context: RankContext) -> None:
        self._run, self._config, self._context = run, config, context
        self._pending: Future[None] | None = None
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
        elif isinstance(error, DivergedError) and self._pending is not None:
            # On all ranks. The state being written may be the one that has diverged.
            wait([self._pending])

    def save(self, name: str, snapshot: Callable[[], Snapshot], state: Mapping[str, Any]) -> None:
        """Copy the state and write it as a checkpoint; all ranks together.

        Raises:
            WriteError: if `max_failures` saves in a row have failed.
            DivergedError: if the state of the last call, or with `asynchronous=false` of this one,
                is not finite. It does not become a checkpoint.
        """
        begun = time.monotonic()
        self.wait()
        setup = thread_setup(self._context.device)
        write = partial(self._write, setup, name, snapshot(), dict(state))
        self._pending = run_in_thread("checkpoint", write)
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
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Wait until the last save has succeeded or failed. Raises as `save`."""
        if self._pending is None:
            return
        error, self._pending = self._pending.exception(), None
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
                "run",
                ranked=False,
            )

    def _write(
        self, setup: Callable[[], None], name: str, snapshot: Snapshot, state: Mapping[str, Any]
    ) -> None:
        setup()
        rank, world, main = self._context.rank, self._context.world_size, self._context.main
        folder = layout.hidden(self._run, name)
        if not all(self._together(snapshot.finite)):
            raise DivergedError(f"the model that was to be saved as {name} is not finite")
        self._together(lambda: layout.begin(self._run, name) if main else None)
        self._together(lambda: snapshot.write(folder))
        self._together(lambda: layout.write_state(folder, state) if main else None)
        parts = self._together(lambda: layout.entries(folder, rank, world))
        files = {name: entry for part in parts for name, entry in part.items()}
        self._together(lambda: self._commit(folder, files) if main else None)

    def _commit(self, folder: Path, files: Inventory) -> None:
        layout.commit(folder, files)
        layout.prune(self._run, self._config.keep_last, self._config.keep_every)

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
