"""What a run says while it trains: events.jsonl, TensorBoard and the line on the terminal.

Only rank 0 writes. A run that is resumed continues both files where its checkpoint stands:
rows of steps that are about to be repeated are dropped.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from kaizen_dist.errors import WriteError

FILE = "events.jsonl"
_QUIET_SECONDS = 10.0
"""In a log, a line of progress at most this often."""


class Journal:
    """Records a run, once `open`; silent on all ranks but the first."""

    def __init__(self, run: Path, active: bool) -> None:
        self._run = run
        self._active = active
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._events: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._bar: Progress | None = None
        self._line: TaskID | None = None
        self._what = ""
        self._said = self._began = 0.0
        self._done_before = 0

    @contextmanager
    def open(self, task: int, step: int, global_step: int) -> Iterator[None]:
        """Continue the files at a step of a task (the `global_step`-th of the run)."""
        if not self._active:
            yield
            return
        self._begin(task, step, global_step)
        try:
            yield
        finally:
            self._end()

    def _begin(self, task: int, step: int, global_step: int) -> None:
        try:
            keep_events(self._run / FILE, (task, step))
            self._events = (self._run / FILE).open("a", encoding="utf-8", buffering=1)
            # Readers drop what an earlier writer has left at or after the step.
            self._board = SummaryWriter(
                str(self._run / "tensorboard"), purge_step=global_step + 1 if global_step else None
            )
        except OSError as error:
            raise WriteError(f"cannot write {self._run / FILE}: {error.strerror}") from error
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._active:
            self._console.print(text)

    def warn(self, text: str) -> None:
        """A line that any rank may say."""
        self._console.print(text, markup=False)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """How far a piece of work is: a bar on a terminal, now and then a line in a log."""
        if not self._active:
            return
        if self._bar is not None:
            if what != self._what:
                if self._line is not None:
                    self._bar.remove_task(self._line)
                self._line = self._bar.add_task(what, total=total, note="")
            assert self._line is not None
            self._bar.update(self._line, completed=done, total=total, note=note)
        elif what != self._what:
            self._said = self._began = time.monotonic()
            self._done_before = done
        elif time.monotonic() - self._said > _QUIET_SECONDS:
            self._said = time.monotonic()
            rate = (done - self._done_before) / (self._said - self._began)
            eta = f"ETA {(total - done) / rate:.0f} s  " if rate > 0 else ""
            self._console.print(f"{what}: {done}/{total}  {eta}{note}".rstrip())
        self._what = what

    def event(self, row: dict[str, Any], global_step: int) -> None:
        """A row of events.jsonl, its numbers in TensorBoard as well."""
        if self._events is None or self._board is None:
            return
        try:
            self._events.write(json.dumps(row) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self._run / FILE}: {error.strerror}") from error
        for name, value in row.items():
            if isinstance(value, float) and name != "time":
                self._board.add_scalar(f"train/{name}", value, global_step)

    def scalar(self, name: str, value: float | None, task: int) -> None:
        """A number measured after a task, for TensorBoard."""
        if self._board is not None and value is not None:
            self._board.add_scalar(f"tasks/{name}", value, task)


class StepMeter:
    """Images per second and the share of time spent waiting, since it was last read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images = 0
        self._waited = 0.0
        self._since = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within counts as waiting."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def read(self) -> tuple[float, float, float]:
        """(images per second, share of time waited, seconds), and start again."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        reading = self.images / seconds, self._waited / seconds, seconds
        self.restart()
        return reading


def keep_events(path: Path, position: tuple[int, int]) -> None:
    """Drop the rows at or after (task, step), and a last line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if (row["task"], row["step"]) < position:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
