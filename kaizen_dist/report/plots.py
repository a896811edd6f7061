"""Figures of a sweep: as charts and bars of its page, and as files, a CSV and a PNG for each.

Every figure can go into a paper, or be made anew from its numbers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.common.fonts import legible
from kaizen_dist.common.formatting import DASH, csv_text, points
from kaizen_dist.evaluation import metrics
from kaizen_dist.evaluation.metrics import Spread
from kaizen_dist.report.charts import Chart, Line, Look, draw_lines, looks
from kaizen_dist.report.drawing import png
from kaizen_dist.report.palette import COLOURS, WHITE_ON_LIGHT, colormap

PLUS_MINUS = "\u00a0±\u00a0"
"""Does not break."""
LEVEL = "7 5"
"""How a line is dashed that is one value."""
MOST_TICKS = 8


@dataclass(frozen=True)
class Series:
    """A metric at the plot's places, over seeds; None: not measured."""

    name: str
    values: tuple[Spread | None, ...]
    level: bool = False
    """One value that holds at every place: what the others are measured against."""


@dataclass(frozen=True)
class Plot:
    """One figure; values are fractions."""

    name: str
    """Of its files."""
    title: str
    note: str
    kind: Literal["lines", "bands", "bars"]
    x_name: str
    places: tuple[str, ...]
    """Names of the places along the axis, which are equally far apart."""
    series: tuple[Series, ...]
    unit: Literal["%", "points"] = "%"


@dataclass(frozen=True)
class MatrixPlot:
    """A mean accuracy matrix as a figure."""

    name: str
    title: str
    matrix: metrics.Matrix
    tasks: int


@dataclass(frozen=True)
class Bar:
    """A bar on a page; `box` and `reach`, that of its spread, are CSS."""

    name: str
    style: str
    box: str
    reach: str
    text: str


@dataclass(frozen=True)
class BarChart:
    """Bars under one title."""

    title: str
    note: str
    bars: list[Bar]


def with_spread(found: Spread) -> str:
    """E.g. "61.0 ± 0.3", without a unit; of a single run the mean."""
    around = "" if found.deviation is None else f"{PLUS_MINUS}{points(found.deviation)}"
    return f"{points(found.mean)}{around}"


def line_chart(plot: Plot, chosen: Sequence[Look]) -> Chart:
    """A plot of lines, in these looks."""
    lines, ends = [], [0.0, 0.01]
    for series, look in zip(plot.series, chosen, strict=True):
        y = [np.nan if found is None else found.mean for found in series.values]
        spread = [(found and found.deviation) or 0.0 for found in series.values]
        hints = [
            f"{series.name}, {plot.x_name} {place}: {with_spread(found)}"
            for place, found in zip(plot.places, series.values, strict=True)
            if found is not None
        ]
        line = Line(
            series.name,
            np.column_stack([np.arange(len(y), dtype=float), y]),
            COLOURS[look.number],
            LEVEL if series.level else look.dash,
            # A dot is a place where something was measured.
            hints=() if series.level else hints,
            spread=spread,
        )
        lines.append(line)
        ends += line.reach() or ()
    every = -(-len(plot.places) // MOST_TICKS)
    return Chart(
        plot.title,
        lines,
        (-0.4, len(plot.places) - 0.6),
        note=plot.note,
        height=260,
        # No share, and no difference of two, is above one, whatever its spread.
        y_range=(min(ends), min(1.0, max(ends))),
        unit=plot.unit,
        x_ticks=[(i, text) for i, text in enumerate(plot.places) if i % every == 0],
        x_name=plot.x_name if len(plot.x_name) < 6 else "",
        banded=plot.kind == "bands",
    )


def bar_chart(plot: Plot, chosen: Sequence[Look]) -> BarChart:
    """A plot of bars on a page: from zero, to either side."""
    (series,) = plot.series
    reach = [(s.mean - (s.deviation or 0), s.mean + (s.deviation or 0)) for s in series.values if s]
    low, high = min(0.0, *(a for a, _ in reach)), max(1e-9, *(b for _, b in reach))

    def span(a: float, b: float) -> str:
        left, right = (100 * (v - low) / (high - low) for v in sorted((a, b)))
        return f"left:{left:.2f}%;width:{right - left:.2f}%"

    styles = {look.name: look.style for look in chosen}
    bars = []
    for name, found in zip(plot.places, series.values, strict=True):
        if found is None:
            bars.append(Bar(name, styles[name], span(0, 0), "", DASH))
            continue
        around = found.deviation or 0.0
        spread = span(found.mean - around, found.mean + around) if around else ""
        bars.append(Bar(name, styles[name], span(0, found.mean), spread, with_spread(found)))
    return BarChart(plot.title, plot.note or ("per cent" if plot.unit == "%" else ""), bars)


# ---- as files -------------------------------------------------------------------------------


def file_name(text: str) -> str:
    """A plain file name from a name that people chose."""
    return re.sub(r"[^\w.=-]+", "_", text, flags=re.ASCII).strip("_.")[:100] or "figure"


def write_files(plots: Iterable[Plot | MatrixPlot], folder: Path) -> None:
    """NAME.csv and NAME.png of every figure.

    Raises:
        WriteError: if the folder cannot be written.
    """
    make_folder(folder)
    for plot in plots:
        atomic_write(folder / f"{plot.name}.csv", csv_text(table(plot)).encode())
        atomic_write(folder / f"{plot.name}.png", picture(plot))


def table(plot: Plot | MatrixPlot) -> list[Sequence[object]]:
    """The figure's numbers, as rows under a header."""
    if isinstance(plot, MatrixPlot):
        header = ["after_task", *(f"task_{i + 1}" for i in range(plot.tasks))]
        return [header, *([t, *row] for t, row in enumerate(plot.matrix, start=1))]
    return [
        ["series", plot.x_name or "place", "mean", "std", "runs"],
        *(
            [series.name, place, found.mean, found.deviation, found.count]
            for series in plot.series
            for place, found in zip(plot.places, series.values, strict=True)
            if found is not None
        ),
    ]


def picture(plot: Plot | MatrixPlot) -> bytes:
    """The figure as a PNG."""

    def draw(axes: Any) -> None:
        if isinstance(plot, MatrixPlot):
            _draw_matrix(axes, plot)
        elif plot.kind == "bars":
            _draw_bars(axes, plot)
        else:
            _draw_lines(axes, plot)

    return png(plot.title, draw)


def _draw_lines(axes: Any, plot: Plot) -> None:
    chart = line_chart(plot, looks([series.name for series in plot.series]))
    draw_lines(axes, replace(chart, lines=[line for line in chart.lines if line.reach()]))
    axes.set_xticks(range(len(plot.places)), [legible(place) for place in plot.places])
    axes.set_xlabel(legible(plot.x_name))
    axes.set_ylabel(plot.unit)
    if len(plot.series) > 1:
        axes.figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8)


def _draw_bars(axes: Any, plot: Plot) -> None:
    (series,) = plot.series
    y = range(len(plot.places))
    means = [100 * found.mean if found else 0.0 for found in series.values]
    spreads = [100 * (found.deviation or 0.0) if found else 0.0 for found in series.values]
    colours = [COLOURS[i % len(COLOURS)] for i in y]
    axes.barh(y, means, xerr=spreads, color=colours, alpha=0.82, capsize=3)
    axes.set_yticks(y, [legible(place) for place in plot.places])
    axes.invert_yaxis()
    axes.set_xlabel(plot.unit)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_matrix(axes: Any, plot: MatrixPlot) -> None:
    nothing = float("nan")
    values = [
        [nothing if v is None else v for v in [*row, *[None] * plot.tasks][: plot.tasks]]
        for row in plot.matrix
    ]
    axes.imshow(values, cmap=colormap(), vmin=0, vmax=1)
    for t, row in enumerate(values):
        for i, value in enumerate(row):
            if isfinite(value):
                how = {"color": "white" if value >= WHITE_ON_LIGHT else "black", "fontsize": 8}
                axes.text(i, t, f"{100 * value:.0f}", ha="center", va="center", **how)
    axes.set_xticks(range(plot.tasks), range(1, plot.tasks + 1))
    axes.set_yticks(range(len(values)), range(1, len(values) + 1))
    axes.set_xlabel("on task")
    axes.set_ylabel("after task")
