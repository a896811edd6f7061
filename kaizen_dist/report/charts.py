"""Line charts by matplotlib: as SVG within a page, or as a PNG file.

A `Chart` is plain numbers. `svg` draws it for a page: its colours are the page's variables, so
that it follows light and dark, its texts are text in the page's font, and every id is its own.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.console import printable
from kaizen_dist.common.fonts import families, legible
from kaizen_dist.common.formatting import SPACE, number, percent
from kaizen_dist.report.palette import COLOURS, FAINT, SOFT, VARIABLES

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
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13.0,
    "lines.linewidth": 2.0,
    "lines.scale_dashes": False,
    "svg.fonttype": "none",
    # What stands between dollars in a name is no formula.
    "text.parse_math": False,
}


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


def png(title: str, draw: Callable[[Any], None]) -> bytes:
    """What `draw` draws into matplotlib's axes, as a PNG file of 1024 x 640 pixels."""
    from matplotlib.text import Text

    def whole(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_title(legible(title), loc="left", fontsize=11)
        axes.tick_params(labelsize=9)
        draw(axes)
        for item in (axes.xaxis.label, axes.yaxis.label):
            item.set_fontsize(10)
        # Asked for, the labels of the ticks know what they say.
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts = [*figure.findobj(Text), *labels]
        used = families("".join(text.get_text() for text in texts))
        for text in texts:
            text.set_fontfamily(used)

    return drawn(whole, (6.4, 4.0), 160, "png", title)


def drawn(
    draw: Callable[[Any], None],
    inches: tuple[float, float],
    dpi: int,
    kind: Literal["svg", "png"],
    salt: str,
) -> bytes:
    """A figure as a file; the same numbers give the same bytes, whatever day it is."""
    # The object interface: pyplot would keep figures, and look for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    encoded = io.BytesIO()
    clear = {"figure.facecolor": "none", "axes.facecolor": "none"} if kind == "svg" else {}
    with rc_context(_SETTINGS | clear | {"svg.hashsalt": salt}):
        figure = Figure(figsize=inches, dpi=dpi, layout="constrained" if kind == "png" else None)
        draw(figure)
        unnamed = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(encoded, format=kind, metadata=unnamed)
    return encoded.getvalue()


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


def inline(
    draw: Callable[[Any], None],
    size: tuple[float, float],
    name: str,
    title: str,
    description: str,
    hints: Mapping[str, Sequence[str]],
) -> str:
    """A figure of `size` px as an element of a page: described, in the page's colours and font.

    `hints` are texts of the dots of an artist, by its gid; one alone is that of all its dots.
    """
    # At 72 dpi a point of matplotlib is a px.
    document = drawn(draw, (size[0] / 72, size[1] / 72), 72, "svg", name)
    root = ElementTree.fromstring(document)  # noqa: S314 - what matplotlib wrote
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        own = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        style = re.sub(r"font-family:[^;]*;? ?", "", own.pop("style", ""))
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, f"var({variable})")
        if element.tag == "g":
            _explain(element, hints.get(own.pop("id", ""), ()))
        element.attrib = own | ({"style": style} if style else {})
    ids = {"title": f"{name}-t", "desc": f"{name}-d"}
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": " ".join(ids.values()),
    }
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, id=ids[tag])
        element.text = printable(text)
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode")


def _explain(group: ElementTree.Element, hints: Sequence[str]) -> None:
    dots = [group] if len(hints) == 1 else [e for e in group.iter() if e.tag.endswith("use")]
    for dot, hint in zip(dots, hints, strict=False):
        ElementTree.SubElement(dot, "title").text = printable(hint)
