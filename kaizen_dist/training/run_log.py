"""The log of a run: events.jsonl, the loggers of `log.to`, messages and progress.

Only rank 0 writes. A resumed run continues at its checkpoint: rows of steps that are about to be
repeated are dropped.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from kaizen_dist.common.console import ProgressBars, say, warn
from kaizen_dist.common.device_clock import Moment, moment, reach, seconds_between
from kaizen_dist.common.files import (
    atomic_file,
    open_append,
    open_to_read,
    parse_json,
    write_all,
    writing,
)
from kaizen_dist.common.run_layout import EVENTS
from kaizen_dist.config.schema import Config
from kaizen_dist.training.loggers import Loggers

_LONGEST_LINE = 1 << 20
"""Bytes; our rows are far shorter."""
_MOST_STEPS = 1 << 40
_MOST_WAITS = 1000
"""Kept until they are added up, which waits for the device."""


class RunLog:
    """Records a run, once `open`; silent on all ranks but the first."""

    def __init__(self, run: Path, active: bool, config: Config | None = None) -> None:
        self._run, self.active = run, active
        self._loggers = Loggers(config or Config(), warn)
        self._events: int | None = None
        """Descriptor of events.jsonl."""
        self._bars = ProgressBars()

    @contextmanager
    def open(self, task: int, step: int) -> Iterator[None]:
        """Continue the files at a step of a task. Raises WriteError."""
        if not self.active:
            yield
            return
        path = self._run / EVENTS
        keep_events(path, (task, step))
        with ExitStack() as stack, self._bars:
            stack.callback(self._loggers.close)
            with writing(path):
                self._events = open_append(path)
                stack.callback(os.close, self._events)
                self._loggers.begin(self._run, task, rows(path))
            yield

    def say(self, text: str) -> None:
        """A message of the run."""
        if self.active:
            say(text, ranked=False)

    def progress(
        self, what: str, done: int, total: int, note: str = "", unit: str = "images"
    ) -> None:
        """The progress of a piece of work, with a bar of its own."""
        if self.active:
            self._bars.show(what, done, total, note, unit)

    def event(self, row: dict[str, Any]) -> None:
        """A row of events.jsonl, also for the loggers. Raises WriteError."""
        if self._events is not None:
            with writing(self._run / EVENTS):
                write_all(self._events, (json.dumps(row) + "\n").encode())
            self._loggers.row(row)

    def scalar(self, name: str, value: float | None, task: int) -> None:
        """A number measured after a task, for the loggers. Raises WriteError."""
        if self._events is not None and value is not None:
            self._loggers.task(name, value, task)


class StepMeter:
    """Images per second and the share of time spent waiting for data, since it was last read.

    A host that runs ahead of its GPU may wait for a batch while the GPU still has work; that costs
    nothing. So on a GPU its own clock measures the waiting: the time between an event that the
    host queues before it waits and one that it queues after. The first is reached when all
    work is done, the second when the batch has come: no time passes between them while work is
    left. The host waits for neither; call `read` where the device has been waited for anyway.
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
        """Time within counts as waiting, as far as the device was idle."""
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
        WriteError: also if it is not a regular file.
    """
    if not os.path.lexists(path):
        return
    with atomic_file(path) as kept:
        for row in rows(path):
            if (row["task"], row["step"]) < position:
                kept.write((json.dumps(row) + "\n").encode())


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of events.jsonl, each of a later step than the one before; other lines are
    skipped. Raises OSError, also for a link and for anything but a regular file."""
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
