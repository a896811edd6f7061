"""Figures over several runs as plain data, and as files: a CSV and a PNG for each.

A `Plot` is lines with a spread, or bars; it knows nothing of the page. `sweep_page` draws it
there, `write_files` beside it, so that every figure can go into a paper or be made anew from
its numbers.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from kaizen_dist.common.files import atomic_file, atomic_write, make_folder
from kaizen_dist.common.fonts import families, legible
from kaizen_dist.evaluation import metrics

COLOURS = ("#0b66b0", "#c94a00", "#007f5c", "#a5458c", "#a07400", "#3b9ad6", "#5a626e")
"""Those of the page by day (style.css)."""
STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Series:
    """Means and their spread (0 = of one run alone) at the plot's places; None: not measured."""

    name: str
    means: tuple[float | None, ...]
    spreads: tuple[float, ...]
    counts: tuple[int, ...]
    """Runs that each mean is of."""
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
    """What the places along the axis are called, equally far apart."""
    series: tuple[Series, ...]
    points: bool = False
    """A difference of accuracies rather than one."""


@dataclass(frozen=True)
class MatrixPlot:
    """A mean accuracy matrix as a figure."""

    name: str
    title: str
    matrix: metrics.Matrix
    tasks: int


def file_name(text: str) -> str:
    """A plain name for files of what people call something."""
    return re.sub(r"[^\w.=-]+", "_", text, flags=re.ASCII).strip("_.")[:100] or "figure"


def write_files(plots: Sequence[Plot | MatrixPlot], folder: Path) -> None:
    """NAME.csv and NAME.png of every figure.

    Raises:
        WriteError: if the folder cannot be written.
    """
    make_folder(folder)
    for plot in plots:
        atomic_write(folder / f"{plot.name}.csv", table(plot).encode())
        with atomic_file(folder / f"{plot.name}.png") as file:
            file.write(picture(plot))


def table(plot: Plot | MatrixPlot) -> str:
    """The figure's numbers as CSV."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    if isinstance(plot, MatrixPlot):
        writer.writerow(["after_task", *(f"task_{i + 1}" for i in range(plot.tasks))])
        for t, row in enumerate(plot.matrix):
            writer.writerow([t + 1, *["" if v is None else v for v in row]])
        return written.getvalue()
    writer.writerow(["series", plot.x_name or "place", "mean", "std", "runs"])
    for series in plot.series:
        columns = zip(plot.places, series.means, series.spreads, series.counts, strict=True)
        for place, mean, spread, count in columns:
            if mean is not None:
                writer.writerow([series.name, place, mean, spread if count > 1 else "", count])
    return written.getvalue()


def picture(plot: Plot | MatrixPlot) -> bytes:
    """The figure as a PNG."""

    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        if isinstance(plot, MatrixPlot):
            _draw_matrix(axes, plot)
        elif plot.kind == "bars":
            _draw_bars(axes, plot)
        else:
            _draw_lines(axes, plot)
        if isinstance(plot, Plot):
            axes.spines[["top", "right"]].set_visible(False)

    return drawn(plot.title, draw)


def drawn(title: str, draw: Callable[[Any], None]) -> bytes:
    """What `draw` draws into matplotlib's axes, as a PNG."""
    # The object interface: pyplot would keep figures, and look for a screen.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    # What stands between dollars in a name is no formula.
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(legible(title), loc="left", fontsize=11)
        draw(axes)
        # Asked for, the labels of the ticks know what they say.
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts = [*figure.findobj(Text), *labels]
        used = families("".join(text.get_text() for text in texts))
        for text in texts:
            text.set_fontfamily(used)
        encoded = io.BytesIO()
        # Without the version of the library, so that the same numbers give the same file.
        figure.savefig(encoded, format="png", metadata={"Software": None})
    return encoded.getvalue()


def _draw_lines(axes, plot: Plot) -> None:  # type: ignore[no-untyped-def]
    for i, series in enumerate(plot.series):
        own = [
            (x, 100 * m, 100 * s)
            for x, (m, s) in enumerate(zip(series.means, series.spreads, strict=True))
            if m is not None and isfinite(m)
        ]
        if not own:
            continue
        x, means, spreads = zip(*own, strict=True)
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        look = {"color": colour, "linestyle": style, "marker": "o", "label": legible(series.name)}
        if series.level:
            look |= {"linestyle": "--", "marker": ""}
        if plot.kind == "lines":
            axes.errorbar(x, means, spreads, capsize=3, **look)
            continue
        axes.plot(x, means, **look)
        low, high = (
            [m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.set_xticks(range(len(plot.places)), [legible(place) for place in plot.places])
    axes.set_xlabel(legible(plot.x_name))
    axes.set_ylabel("points" if plot.points else "%")
    if not plot.points:
        axes.set_ylim(bottom=0)
    if len(plot.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_bars(axes, plot: Plot) -> None:  # type: ignore[no-untyped-def]
    (series,) = plot.series
    y = range(len(plot.places))
    means = [0.0 if m is None else 100 * m for m in series.means]
    spreads = [100 * s for s in series.spreads]
    colours = [COLOURS[i % len(COLOURS)] for i in y]
    axes.barh(y, means, xerr=spreads, color=colours, alpha=0.82, capsize=3)
    axes.set_yticks(y, [legible(place) for place in plot.places])
    axes.invert_yaxis()
    axes.set_xlabel("points" if plot.points else "%")


def _draw_matrix(axes, plot: MatrixPlot) -> None:  # type: ignore[no-untyped-def]
    nothing = float("nan")
    values = [
        [nothing if v is None else 100 * v for v in [*row, *[None] * plot.tasks][: plot.tasks]]
        for row in plot.matrix
    ]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    for t, row in enumerate(values):
        for i, value in enumerate(row):
            if isfinite(value):
                colour = "white" if value > 55 else "black"
                axes.text(i, t, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(plot.tasks), range(1, plot.tasks + 1))
    axes.set_yticks(range(len(values)), range(1, len(values) + 1))
    axes.set_xlabel("on task")
    axes.set_ylabel("after task")
