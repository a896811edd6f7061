"""Line charts: plain numbers, drawn by matplotlib for a page or into a file's figure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.fonts import legible
from kaizen_dist.common.formatting import SPACE, number, percent
from kaizen_dist.report.drawing import inline
from kaizen_dist.report.palette import COLOURS, FAINT, SOFT

Points: TypeAlias = NDArray[np.float64]
"""[n, 2]: x and y; a y that is NaN breaks the line."""

DASHES = ("", "7 4", "2 4")
"""After the seven colours the same again dashed, then dotted."""
LABEL_GAP = 17.0
"""Least distance in px between two labels at the lines' ends."""
TASK_GAP = 28.0
"""Least distance in px between two task numbers."""
LOW = 180
"""Charts of less height in px have fewer ticks."""
_LEFT, _RIGHT, _END, _TOP, _TASKS, _BOTTOM = 46.0, 10.0, 84.0, 8.0, 34.0, 34.0
"""Margins in px: `_END` with labels at the ends, `_TASKS` with task numbers above."""


@dataclass(frozen=True)
class Look:
    """How a run or a variant is drawn all over a page."""

    name: str
    number: int
    """Of its colour."""
    dash: str = ""

    @property
    def style(self) -> str:
        """Class of the style sheet."""
        return f"c{self.number}"


def looks(names: Sequence[str]) -> list[Look]:
    """Seven colours; after them the same again, dashed, then dotted."""
    count = len(COLOURS)
    return [Look(n, i % count, DASHES[i // count % len(DASHES)]) for i, n in enumerate(names)]


def _no_points() -> Points:
    return np.empty((0, 2))


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: Points
    colour: str = COLOURS[0]
    dash: str = ""
    raw: Points = field(default_factory=_no_points)
    """The values that the line was smoothed from."""
    hints: Sequence[str] = ()
    """One for each point: it is drawn as a dot that shows this text."""
    spread: Sequence[float] = ()
    """Standard deviation of each point; 0 where there is none."""

    def reach(self) -> tuple[float, float] | None:
        """Least and largest y to be shown; single raw outliers are left out."""
        y, raw = (of[:, 1][np.isfinite(of[:, 1])] for of in (self.points, self.raw))
        if not len(y):
            return None
        spread = np.asarray(self.spread)[np.isfinite(self.points[:, 1])] if self.spread else 0.0
        ends = np.percentile(raw if len(raw) else y[:1], [1, 99])
        return min(float(ends[0]), *(y - spread)), max(float(ends[1]), *(y + spread))


@dataclass(frozen=True)
class Chart:
    """A line chart. `x_range`, `x_ticks` and `bands` are in the units of the lines' x."""

    title: str
    lines: Sequence[Line]
    x_range: tuple[float, float]
    note: str = ""
    height: int = 220
    """Of the plot, in px."""
    y_range: tuple[float, float] | None = None
    """That of the lines by default; the axis ends at the ticks that enclose it."""
    unit: Literal["", "%", "points"] = ""
    """Of fractions: shown times 100."""
    x_ticks: Sequence[tuple[float, str]] | None = None
    """None: counts."""
    x_name: str = ""
    bands: Sequence[tuple[float, float]] = ()
    """Beginning and end of every task."""
    label_ends: bool = False
    banded: bool = False
    """Show the spread as a band rather than as bars."""

    @property
    def empty(self) -> bool:
        """Whether no line has a single value."""
        return all(line.reach() is None for line in self.lines)

    @property
    def description(self) -> str:
        """The chart in words: where every line begins and ends."""
        show = percent if self.unit == "%" else _value
        parts = [f"{self.note[:1].upper()}{self.note[1:]}."] if self.note else []
        for line in self.lines:
            y = line.points[:, 1][np.isfinite(line.points[:, 1])]
            if len(y):
                first, last = show(float(y[0])), show(float(y[-1]))
                parts.append(f"{line.name}: {first} at the beginning, {last} at the end.")
        return " ".join(parts)


def svg(chart: Chart, name: str, width: int) -> str:
    """The chart as an SVG element that scales, `width` px at its own size.

    `name` is unique on the page: ids begin with it, or are made from it.
    """
    top = _TASKS if chart.bands else _TOP
    right = _END if chart.label_ends else _RIGHT
    plot_width, height = width - _LEFT - right, top + chart.height + _BOTTOM
    place = (_LEFT / width, _BOTTOM / height, plot_width / width, chart.height / height)

    def draw(figure: Any) -> None:
        axes = figure.add_axes(place)
        draw_lines(axes, chart)
        _label(axes, chart, plot_width)

    hints = {f"dots-{i}": line.hints for i, line in enumerate(chart.lines)}
    return inline(draw, (width, height), name, chart.title, chart.description, hints)


def draw_lines(axes: Any, chart: Chart) -> None:
    """Lines, spreads and dots, with the axis of the values; also into a file's figure."""
    for i, line in enumerate(chart.lines):
        x, y = line.points.T
        dash = (0, tuple(map(float, line.dash.split()))) if line.dash else "-"
        spread = np.asarray(line.spread or [0.0] * len(x))
        axes.plot(*line.raw.T, color=line.colour, alpha=0.22, linewidth=1, zorder=1)
        axes.plot(x, y, color=line.colour, linestyle=dash, label=legible(line.name), zorder=3)
        if chart.banded:
            ends = (y - spread, y + spread)
            axes.fill_between(x, *ends, color=line.colour, alpha=0.14, linewidth=0, zorder=2)
        else:
            wide = spread > 0
            ends = ((y - spread)[wide], (y + spread)[wide])
            axes.vlines(x[wide], *ends, color=line.colour, linewidth=1.5, zorder=2)
        seen = np.isfinite(y) if line.hints else _alone(y)
        axes.plot(
            *(x[seen], y[seen]),
            linestyle="",
            marker="o",
            markersize=6 if len(x) < 13 else 4,
            color=line.colour,
            zorder=4,
            clip_on=False,
            gid=f"dots-{i}",
        )
    ticks = y_ticks(chart)
    axes.set_yticks(ticks, _tick_texts(ticks, chart.unit))
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_xlim(*chart.x_range)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=1)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(length=0, colors=SOFT, pad=8)
    axes.tick_params(axis="x", pad=13)


def y_ticks(chart: Chart) -> list[float]:
    """Round numbers that enclose the values of a chart that is not empty."""
    from matplotlib.ticker import MaxNLocator

    reach = [r for r in (line.reach() for line in chart.lines) if r]
    low, high = chart.y_range or (min(r[0] for r in reach), max(r[1] for r in reach))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = 0.1 * abs(low) or 1.0
        low, high = low - pad * (low != 0), high + pad
    locator = MaxNLocator(5 if chart.height > LOW else 3, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high)]


def _alone(y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points between two gaps, which a line does not show."""
    gap = ~np.isfinite(np.concatenate([[np.nan], y, [np.nan]]))
    return ~gap[1:-1] & gap[:-2] & gap[2:]


def _tick_texts(ticks: Sequence[float], unit: str) -> list[str]:
    if not unit:
        return [_value(tick) for tick in ticks]
    digits = 0 if ticks[1] - ticks[0] > 0.00999 else 1
    texts = [number(100 * tick, digits) for tick in ticks]
    return [*texts[:-1], f"{texts[-1]}{SPACE}%" if unit == "%" else texts[-1]]


def _value(value: float) -> str:
    """E.g. 0.25, 12k, 1.5M; the round number that binary fractions miss by a hair."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1000 * size:
            return f"{value / size:.4g}{letter}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _label(axes: Any, chart: Chart, width: float) -> None:
    """Ticks of the x axis, task numbers and names of lines, on a page."""
    from matplotlib.ticker import MaxNLocator

    low, high = chart.x_range
    x_ticks = chart.x_ticks
    if x_ticks is None:
        locator = MaxNLocator(7 if width > 600 else 4, integer=True, steps=[1, 2, 2.5, 5, 10])
        x_ticks = [(t, _value(t)) for t in locator.tick_values(low, max(1.0, high)) if t <= high]
    axes.set_xticks([at for at, _ in x_ticks], [legible(text) for _, text in x_ticks])

    def text(words: str, at: tuple[float, float], offset: tuple[float, float], **how: Any) -> None:
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(legible(words), at, offset, **({"color": SOFT} | where | how))

    if chart.x_name:
        text(chart.x_name, (low, 0), (-13, -13), ha="right", va="top")
    if chart.bands:
        text("task", (low, 1), (-8, 14), ha="right")
    last = -TASK_GAP
    for task, (start, end) in enumerate(chart.bands, start=1):
        if task > 1:
            axes.axvline(start, color=FAINT, linewidth=1, zorder=0)
        middle = (start + end) / 2
        place = width * (middle - low) / (high - low)
        if place - last >= TASK_GAP:
            last = place
            text(str(task), (middle, 1), (0, 14), ha="center")
    if chart.label_ends:
        bottom, top = axes.get_ylim()
        for line, place in _ends(chart, bottom, top):
            how = {"color": line.colour, "va": "center", "weight": "bold"}
            text(line.name, (high, place / chart.height), (10, 0), **how)


def _ends(chart: Chart, bottom: float, top: float) -> list[tuple[Line, float]]:
    """Lines with the heights in px of the names at their ends, moved apart where they touch."""
    ends = [(line, line.points[:, 1][np.isfinite(line.points[:, 1])]) for line in chart.lines]
    wanted = [
        (line, chart.height * (float(y[-1]) - bottom) / (top - bottom))
        for line, y in ends
        if len(y)
    ]
    wanted.sort(key=lambda end: end[1])
    places = [place for _, place in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_GAP)
    for i, place in enumerate(places):
        places[i] = min(place, chart.height - LABEL_GAP * (len(places) - 1 - i))
    return [(line, place) for (line, _), place in zip(wanted, places, strict=True)]
