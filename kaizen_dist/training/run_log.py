"""Log of a run: events.jsonl, the loggers of `log.to` and the line on the terminal.

Only rank 0 writes. A run that is resumed continues where its checkpoint stands: rows of steps
that are about to be repeated are dropped.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from kaizen_dist.common.console import PlainConsole, one_line
from kaizen_dist.common.device_clock import Moment, moment, reach, seconds_between
from kaizen_dist.common.files import (
    atomic_file,
    cannot_write,
    open_append,
    open_to_read,
    parse_json,
    write_all,
)
from kaizen_dist.common.run_layout import EVENTS
from kaizen_dist.config.schema import Config
from kaizen_dist.training.loggers import Loggers

_QUIET_SECONDS = 10.0
"""In a log, a line of progress at most this often."""
_LONGEST_LINE = 1 << 20
"""Bytes; no row of ours comes near."""
_MOST_STEPS = 1 << 40
_MOST_WAITS = 1000
"""Kept until they are added up, which waits for the device."""


class Journal:
    """Records a run, once `open`; silent on all ranks but the first."""

    def __init__(self, run: Path, active: bool, config: Config | None = None) -> None:
        self._run = run
        self.active = active
        self._console = PlainConsole(stderr=True)
        self._loggers = Loggers(config or Config(), self.warn)
        self._events: int | None = None
        """Descriptor of events.jsonl."""
        self._bar: Progress | None = None
        self._line: TaskID | None = None
        self._what = ""
        self._said = self._began = 0.0
        self._done_before = 0

    @contextmanager
    def open(self, task: int, step: int) -> Iterator[None]:
        """Continue the files at a step of a task. Raises WriteError."""
        if not self.active:
            yield
            return
        self._begin(task, step)
        try:
            yield
        finally:
            self._end()

    def _begin(self, task: int, step: int) -> None:
        path = self._run / EVENTS
        keep_events(path, (task, step))
        with self._writing(path):
            self._events = open_append(path)
            self._loggers.begin(self._run, task, rows(path))
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._bar.start()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            os.close(self._events)
        self._loggers.close()

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.active:
            self._console.print(text)

    def warn(self, text: str) -> None:
        """A line that any rank may say."""
        self._console.print(text)

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """How far a piece of work is: a bar on a terminal, now and then a line in a log."""
        if not self.active:
            return
        what = one_line(what)
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

    def event(self, row: dict[str, Any]) -> None:
        """A row of events.jsonl, also for the loggers. Raises WriteError."""
        if self._events is None:
            return
        with self._writing(self._run / EVENTS):
            write_all(self._events, (json.dumps(row) + "\n").encode())
        self._loggers.row(row)

    def scalar(self, name: str, value: float | None, task: int) -> None:
        """A number measured after a task, for the loggers. Raises WriteError."""
        if self._events is not None and value is not None:
            self._loggers.task(name, value, task)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(path, error) from None


class StepMeter:
    """Images per second and the share of time spent waiting for data, since it was last read.

    A host that runs ahead of its GPU may wait for a batch while there is work left; nobody loses
    by that. So on a GPU waiting is what its own clock says of it: the time between a mark that the
    host queues before it waits and one that it queues after. The first is reached when all
    work is done, the second when the batch has come: no time lies between while work is left.
    The host waits for neither; `read` is for when the device has been waited for anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self.images = 0
        self._waits: list[tuple[Moment, Moment]] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within counts as waiting, as far as it is lost."""
        begun = moment(self._device)
        yield
        self._waits.append((begun, moment(self._device)))
        if len(self._waits) >= _MOST_WAITS:
            self._add_up()

    def _add_up(self) -> None:
        if self._waits:
            reach(self._waits[-1][1])
        self._waited += sum(seconds_between(*wait) for wait in self._waits)
        self._waits.clear()

    def read(self) -> tuple[float, float, float]:
        """(images per second, share of time waited, seconds), and start again."""
        self._add_up()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        reading = self.images / seconds, min(self._waited / seconds, 1.0), seconds
        self.restart()
        return reading


def keep_events(path: Path, position: tuple[int, int]) -> None:
    """Drop the rows at or after (task, step), and a last line cut short by a kill.

    Raises:
        WriteError: also if what lies there is no regular file.
    """
    if not os.path.lexists(path):
        return
    with atomic_file(path) as kept:
        for row in rows(path):
            if (row["task"], row["step"]) < position:
                kept.write((json.dumps(row) + "\n").encode())


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of events.jsonl, each of a later step than the one before; what is no row of ours is
    passed over. Raises OSError, also for a link and for what is no regular file."""
    last = (-1, -1)
    with open_to_read(path, follow=False) as file:
        while line := file.readline(_LONGEST_LINE):
            try:
                row = parse_json(line)
                position = row["task"], row["step"]
                counted = all(type(n) is int and 0 <= n < _MOST_STEPS for n in position)
            except (ValueError, KeyError, TypeError, IndexError):
                continue
            if counted and position > last:
                last = position
                yield row
