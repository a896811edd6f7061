"""Messages and progress of this package, and text from elsewhere shown literally.

Messages go to the logger `kaizen_dist`, whose handler prints them on standard error; a program
that uses this package configures it as any other logger. Results go to standard output.

Class names, file names, run names and host names come from other people. Such text is printed
literally: markup is not interpreted, and control characters, which a terminal would obey (colours,
titles, cursor movement), and unpaired surrogates, which cannot be encoded, are shown as escapes.
"""

import io
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

LOGGER: Final = logging.getLogger("kaizen_dist")
LINE_EVERY: Final = 10.0
"""Seconds between two progress lines."""

_UNPRINTABLE = re.compile(
    # C0 but tab and line feed, DEL, C1, direction marks, surrogates.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""The text with every control character and surrogate escaped: \x1b, \u202e ..."""
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), str(text))


def one_line(text: object) -> str:
    r"""As `printable`, with line feeds as \n and tabs as \t: for a name within a message."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: object = "", *, error: bool = True, end: str = "\n", ranked: bool = True) -> None:
    """Log a message, or (not `error`) print a result on standard output.

    A message that is not `ranked` is about the run as a whole and shows no rank.
    """
    if error:
        LOGGER.info("%s", text, extra={"ranked": ranked})
    else:
        print(printable(text), end=end, flush=True)


def warn(text: object, *, ranked: bool = True) -> None:
    """Log a warning."""
    LOGGER.warning("%s", text, extra={"ranked": ranked})


class _StandardError(logging.Handler):
    """Prints messages, warnings marked as such, with the rank if there are several."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        several = "RANK" in os.environ and getattr(record, "ranked", True)
        rank = f"rank {os.environ['RANK']}: " if several else ""
        line = printable(f"{level}{rank}{record.getMessage()}")
        print(line, file=sys.stderr, flush=True)


LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False
LOGGER.addHandler(_StandardError())


class PlainConsole(Console):
    """A rich console that prints every string literally, also in the cells and titles of tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"highlight": False, "soft_wrap": True, "markup": False, "emoji": False} | options
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """As in rich, with control characters escaped."""
        return super().render_str(printable(text), **options)

    def render(self, *what: Any, **options: Any) -> Iterator[Segment]:
        """As in rich; a `Text` in the cell of a table adds no control characters either."""
        for segment in super().render(*what, **options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError to the caller instead of ending the process."""
        raise


class ProgressBar:
    """Counts finished work on standard error: a bar on a terminal, a line every 10 s elsewhere.

    A context manager. `total` is None if unknown; `done` is the count of an earlier session, which
    the rate leaves out. `unit` is the plural of what is counted.
    """

    def __init__(
        self, what: str, total: int | None, unit: str = "images", done: int = 0, shown: bool = True
    ) -> None:
        self._what, self._total, self._unit, self._shown = what, total, unit, shown
        self._before, self.done, self._note = done, done, ""
        self._console = PlainConsole(stderr=True)
        self._bar = self._make_bar() if shown and self._console.is_terminal else None

    def __enter__(self) -> "ProgressBar":
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

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` to what is done, and show `note` beside it."""
        self.done += count
        self._note = f"  {note}" if note else ""
        if self._bar is not None:
            rate = f"{self._rate():,.0f} {self._unit}/s{self._note}"
            self._bar.update(self._task, advance=count, rate=rate)
        elif self._shown and time.monotonic() - self._last_line >= LINE_EVERY:
            self._print_line()

    def _make_bar(self) -> "Progress":
        from rich import progress

        bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}", markup=False),
            progress.TimeElapsedColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._task = bar.add_task(self._what, total=self._total, completed=self.done, rate="")
        return bar

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self) -> None:
        self._last_line, rate = time.monotonic(), self._rate()
        of = eta = ""
        if self._total is not None:
            of = f" of {self._total:,}"
            eta = f", ETA {(self._total - self.done) / rate:,.0f} s" if rate > 0 else ""
        count = f"{self.done:,}{of} {self._unit}, {rate:,.0f} {self._unit}/s"
        self._console.print(f"{self._what}: {count}{eta}{self._note}")


class ProgressBars(ExitStack):
    """One progress bar after another; a context manager."""

    _bar: ProgressBar | None = None
    _what = ""

    def show(self, what: str, done: int, total: int, note: str = "", unit: str = "images") -> None:
        """The progress of a piece of work, which ends that of another one."""
        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = self.enter_context(ProgressBar(one_line(what), total, unit, done))
        self._bar.advance(done - self._bar.done, note)


def forgive_encoding() -> None:
    """Print characters that the terminal's encoding lacks as escapes from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
