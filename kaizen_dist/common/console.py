"""What is said on the terminal: text that others wrote is shown, never obeyed.

Names of classes, files, runs and hosts come from other people. A line of ours that quotes them is
printed as it stands: no markup in it is read, and control characters, which a terminal would
follow (colours, titles, moving the cursor), and halves of characters, which no encoding has, are
shown as escapes. And no output fails for its characters, whatever the terminal's encoding.
"""

import io
import re
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""All but the tab and the line's end: C0, DEL and C1, and what turns the direction of writing."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: object) -> str:
    r"""A text for a terminal or a log: every control character as \x1b, \u202e ..."""
    shown = _CONTROL.sub(lambda found: _escape(found[0]), str(text))
    return _SURROGATE.sub(lambda found: _escape(found[0]), shown)


def one_line(text: object) -> str:
    r"""As `printable`, with line ends as \n: for a name within a line of ours."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def say(text: object = "", *, error: bool = True, end: str = "\n") -> None:
    """Print a line, on standard error or (not `error`) on standard output."""
    print(printable(text), end=end, file=sys.stderr if error else sys.stdout, flush=True)


class PlainConsole(Console):
    """A console that takes every string as it stands, also the cells and titles of tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"highlight": False, "soft_wrap": True, "markup": False, "emoji": False} | options
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich has it, with the control characters shown."""
        return super().render_str(printable(text), **options)

    def render(self, *what: Any, **options: Any) -> Iterator[Segment]:
        """As rich has it; no text that was not a string before (Text, in a cell of a table)
        brings control characters of its own."""
        for segment in super().render(*what, **options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Where nobody reads any more: BrokenPipeError, for who started to print."""
        raise


def forgive_encoding() -> None:
    """From now on a character that the terminal's encoding lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
