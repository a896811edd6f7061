"""How far a long piece of work has come: a bar on a terminal, plain lines in a log.

Both go to standard error, so that standard output stays clean for results.
"""

import os
import time
from types import TracebackType
from typing import Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kaizen_dist.common import console

LINE_EVERY: Final = 10.0
"""Seconds between two plain lines."""


def say(text: str) -> None:
    """A line about this process alone, with its rank where there are several."""
    where = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    console.say(f"{where}{text}")


class Meter:
    """Counts what is done; a context manager.

    `total` is None where the end is not known beforehand; `done` counts what an earlier session
    did, and is left out of the rate. `unit` is the plural of what is counted.
    """

    def __init__(
        self, what: str, total: int | None, unit: str = "images", done: int = 0, shown: bool = True
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._before, self.done = done, done
        self._shown = shown
        self._console = console.PlainConsole(stderr=True)
        self._bar = self._make_bar() if shown and self._console.is_terminal else None

    def __enter__(self) -> "Meter":
        self._started = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and error is None and self._last_line > self._started:
            self._print_line()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            rate = self._rate()
            self._bar.update(self._task, advance=count, rate=f"{rate:,.0f} {self._unit}/s")
        elif self._shown and time.monotonic() - self._last_line >= LINE_EVERY:
            self._print_line()

    def _make_bar(self) -> Progress:
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = bar.add_task(self._what, total=self._total, completed=self.done, rate="")
        return bar

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        rate = self._rate()
        line = f"{self._what}: {self.done:,} {self._unit}, {rate:,.0f} {self._unit}/s"
        if self._total is not None:
            line = f"{self._what}: {self.done:,} of {self._total:,} {self._unit}"
            line += f", {rate:,.0f} {self._unit}/s"
            if rate > 0:
                line += f", ETA {(self._total - self.done) / rate:,.0f} s"
        self._console.print(line)
