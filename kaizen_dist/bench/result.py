"""Common to all benchmarks: contenders in turns, rows of medians, and one result of them.

A row is plain data: `name`, and the columns that the benchmark's own module documents. Columns
about speed are medians over turns; `*_spread` holds the least and the largest turn.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rich.table import Table

from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.formatting import markdown_table

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]


class Spent(NamedTuple):
    """Time of a step, of a part of one, or of an image."""

    seconds: float
    """By the wall clock; of work on a GPU, of its stream."""
    cpu_seconds: float
    """Of all threads of this process."""


class Sheet(NamedTuple):
    """A table of text: column heads and lines of cells."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title)
        for number, name in enumerate(self.head):
            table.add_column(name, justify="right" if number else "left", no_wrap=not number)
        for line in self.lines:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """For a document, without the title."""
        return markdown_table(self.head, self.lines, words=1)


@dataclass(frozen=True)
class BenchResult:
    """Rows, the machine they were measured on, and the settings."""

    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]
    sheets: list[Sheet]
    """The rows as text."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Measurements that failed: {"name", "log"}."""

    def to_json(self) -> dict[str, Any]:
        """{"rows": [{"name", ...}], "machine": {...}, "settings": {...}, "failures": [...]}"""
        names = ("rows", "machine", "settings", "failures")
        return {name: getattr(self, name) for name in names}

    def print(self, as_json: bool) -> None:
        """On standard output: tables, or JSON on one line."""
        if as_json:
            print(json.dumps(self.to_json()))
        else:
            PlainConsole().print(*(sheet.table() for sheet in self.sheets))

    def raise_failures(self) -> None:
        """Raises KaizenError if something could not be measured."""
        if self.failures:
            listed = "\n".join(f"  {f['name']}: {f['log']}" for f in self.failures)
            raise KaizenError(f"{len(self.failures)} measurement(s) failed; see\n{listed}")


def in_turns(contenders: Iterable[T], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, contender), every other round in the opposite order, so that other load on the
    machine affects all contenders."""
    listed = list(contenders)
    for number in range(rounds):
        for contender in listed[:: -1 if number % 2 else 1]:
            yield number, contender


def speed(turns: Sequence[Spent], images: int = 1) -> Row:
    """The columns about speed, from the time that `images` images took in every turn."""
    walls, cpus = ([turn[i] for turn in turns] for i in (0, 1))
    return {
        "images_per_second": images / median(walls),
        "cpu_ms_per_image": 1000 * median(cpus) / images,
        "images_per_second_spread": (images / max(walls), images / min(walls)),
        "cpu_ms_per_image_spread": (1000 * min(cpus) / images, 1000 * max(cpus) / images),
    }


def compared(row: Row, baseline: Row) -> Row:
    """How many times more images a second, and a CPU second, than the baseline."""
    return {
        "times_images_per_second": row["images_per_second"] / baseline["images_per_second"],
        "times_per_cpu_second": baseline["cpu_ms_per_image"] / row["cpu_ms_per_image"],
    }


SPEED_HEAD = ("images/s", "CPU ms/image", "x images/s", "x per CPU s")


def speed_cells(row: Row, digits: tuple[int, int]) -> list[str]:
    """The cells under SPEED_HEAD; ± is half of the spread, relative to its middle."""
    cells = []
    for name, places in zip(("images_per_second", "cpu_ms_per_image"), digits, strict=True):
        least, largest = row[f"{name}_spread"]
        around = (largest - least) / (largest + least)
        cells.append(f"{row[name]:,.{places}f} ±{100 * around:.0f} %")
    for name in ("times_images_per_second", "times_per_cpu_second"):
        cells.append("" if row[name] is None else f"{row[name]:.2f}")
    return cells
