"""Numbers and tables as text: per cent, points, durations, plurals, lists, CSV, Markdown.

A value that was not measured is a dash, never a zero. The minus sign is U+2212, the space before
a unit does not break.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise

from kaizen_dist.common.console import one_line

SPACE = "\u202f"
DASH = "–"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def percent(value: float | None, digits: int = 1) -> str:
    """0.4831 -> "48.3 %"."""
    return DASH if value is None else f"{number(100 * value, digits)}{SPACE}%"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two accuracies: 0.12 -> "12.0"."""
    return DASH if value is None else number(100 * value, digits)


def fraction(value: float | None) -> str:
    """0.3131 -> "0.313"."""
    return DASH if value is None else number(value, 3)


def number(value: float, digits: int = 0) -> str:
    """Grouped in thousands; what rounds to zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """In the two largest units: "2 d 3 h", "3 h 12 min", "4 min 5 s", "7 s"."""
    if seconds is None:
        return DASH
    whole = max(0, round(seconds))
    for (unit, size), (minor, small) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{SPACE}{unit}" + (f" {rest}{SPACE}{minor}" if rest else "")
    return f"{whole}{SPACE}s"


def plural(count: int, noun: str, several: str = "") -> str:
    """1 -> "1 task", 5 -> "5 tasks"."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def listing(items: Iterable[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with line feeds; None is an empty cell."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], words: int | None = None
) -> str:
    """A GitHub-flavoured table; columns after the first `words` (None: all) are numbers."""
    words = len(header) if words is None else words
    rule = ["---" if i < words else "---:" for i in range(len(header))]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in (header, rule, *rows))


def markdown_text(text: str) -> str:
    """A name as Markdown shows it: no cell, line, link, formula or tag begins in it."""
    special: dict[str, str | int | None] = {c: f"\\{c}" for c in "\\`*_{}[]<>()|&#!~$"}
    return one_line(" ".join(text.split()).translate(str.maketrans(special)))
