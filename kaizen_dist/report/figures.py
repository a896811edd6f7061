"""Line charts as plain geometry, for the template to draw as SVG.

In come curves, out go positions in per mille of a chart's width and height and the texts
beside it. The frame is drawn by an SVG that stretches to any width, the texts are HTML laid
over it: so lines stay thin and letters legible from a phone to a poster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10

from kaizen_dist.common.formatting import SPACE, number, percent
from kaizen_dist.report.curves import Curve, Points

LABEL_GAP = 17.0
"""Least distance in px between two labels at the lines' ends."""
CROWDED, CROWDED_SMALL = 0.065, 0.095
"""Task numbers closer than this share of a chart's width are thinned out."""
SMALL = 180
"""Charts lower than this many px stand beside others, and so are narrow, too."""


@dataclass(frozen=True)
class Label:
    """A text at a place along an axis, in per cent of its length from the left or the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A measured value, drawn as a dot that tells its value when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One line of a chart. `style` is its colour's name in the style sheet."""

    name: str
    style: str
    path: str
    dash: str = ""
    raw: str = ""
    dots: list[Dot] = field(default_factory=list)
    area: str = ""
    """What lies within the spread, as an outline."""
    whiskers: str = ""
    """The spread of every point, as a bar."""


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw a line chart."""

    title: str
    note: str
    description: str
    height: int
    lines: list[Line]
    y_ticks: list[Label]
    x_ticks: list[Label]
    bands: list[float]
    band_labels: list[Label]
    ends: list[tuple[Label, str]]
    x_name: str


@dataclass(frozen=True)
class Named:
    """A curve with its name and style, as it goes into a chart."""

    name: str
    style: str
    curve: Curve
    dash: str = ""
    dot_texts: Sequence[str] = ()
    """Where given, every point is a dot that says this."""
    spread: Sequence[float] = ()
    """Of every point, to either side; 0 where there is none."""
    banded: bool = False
    """Show the spread as a band rather than as bars."""


def line_chart(
    title: str,
    lines: Sequence[Named],
    x_range: tuple[float, float],
    *,
    note: str = "",
    height: int = 220,
    y_range: tuple[float, float] | None = None,
    per_cent: bool = False,
    x_ticks: Sequence[Label] = (),
    bands: Sequence[tuple[float, float]] = (),
    label_ends: bool = False,
    x_name: str = "",
) -> Chart | None:
    """Lay out a chart; None where no line has a single value to show.

    `x_range` and `bands` (beginning and end of every task) are in the curves' units;
    `x_ticks` are given in them too. `y_range` defaults to that of the curves.
    """
    ranges = [r for r in (line.curve.range() for line in lines) if r is not None]
    if not ranges:
        return None
    low, high = y_range or (min(r[0] for r in ranges), max(r[1] for r in ranges))
    ticks = nice_ticks(low, high, 5 if height > SMALL else 3)
    frame = _Frame(x_range, (min(low, ticks[0]), max(high, ticks[-1])))
    drawn = [_line(line, frame) for line in lines]
    ends = _ends(lines, frame, height) if label_ends else []
    return Chart(
        title=title,
        note=note,
        description=_describe(lines, per_cent),
        height=height,
        lines=drawn,
        y_ticks=[Label(frame.y(t) / 10, _tick(t, ticks, per_cent)) for t in ticks],
        x_ticks=[Label(frame.x(t.at) / 10, t.text) for t in x_ticks],
        bands=[frame.x(start) for start, _ in bands[1:]],
        band_labels=_band_labels(bands, frame, CROWDED if height > SMALL else CROWDED_SMALL),
        ends=ends,
        x_name=x_name,
    )


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers, a step of 1, 2, 2.5 or 5 times a power of ten apart.

    They enclose [low, high]: the first is at or below it, the last at or above.
    """
    if high - low < 1e-9 * max(1e-6, abs(low), abs(high)):
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread * (low != 0), high + spread
    power = 10.0 ** floor(log10((high - low) / most))
    for scale in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0):
        step = scale * power
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def count_ticks(highest: float, most: int = 5) -> list[Label]:
    """Round numbers from 0 that lie within [0, highest], for an axis of steps."""
    ticks = [t for t in nice_ticks(0, max(1.0, highest), most) if t <= highest and t == int(t)]
    return [Label(t, _short(t)) for t in ticks]


class _Frame:
    """From a chart's units to per mille of its width, and of its height from the top."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self._x, self._y = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self._x
        return round(1000 * (value - low) / ((high - low) or 1.0), 1)

    def y(self, value: float) -> float:
        low, high = self._y
        return round(1000 * (1 - (value - low) / ((high - low) or 1.0)), 1)


def _line(line: Named, frame: _Frame) -> Line:
    dots = []
    if line.dot_texts:
        measured = [p for task in line.curve.smooth for p in task]
        texts = zip(measured, line.dot_texts, strict=True)
        dots = [Dot(frame.x(x), frame.y(y), text) for (x, y), text in texts if isfinite(y)]
    path, raw = "", ""
    for task in line.curve.smooth:
        for stroke in _strokes(task):
            if len(stroke) == 1 and not line.dot_texts:
                (x, y), *_ = stroke
                dots.append(Dot(frame.x(x), frame.y(y), f"{line.name}: {y:.4g}"))
            path += _path(stroke, frame)
    for task in line.curve.raw:
        raw += "".join(_path(stroke, frame) for stroke in _strokes(task))
    area, whiskers = _spread(line, frame)
    return Line(line.name, line.style, path, line.dash, raw, dots, area, whiskers)


def _spread(line: Named, frame: _Frame) -> tuple[str, str]:
    """SVG path data of the band around a line, or of the bars at its points."""
    measured = [p for task in line.curve.smooth for p in task]
    if not line.spread:
        return "", ""
    ranges = [(x, y - s, y + s) for (x, y), s in zip(measured, line.spread, strict=True)]
    if not line.banded:
        bars = [(frame.x(x), frame.y(a), frame.y(b)) for x, a, b in ranges if b > a]
        return "", "".join(f"M{x:g} {a:g}V{b:g}" for x, a, b in bars)
    lows = _strokes([(x, low) for x, low, _ in ranges])
    highs = _strokes([(x, high) for x, _, high in ranges])
    closed = [_path([*low, *reversed(high)], frame) for low, high in zip(lows, highs, strict=True)]
    return "".join(f"{outline}Z" for outline in closed if outline), ""


def _strokes(points: Points) -> list[Points]:
    """Cut at every NaN."""
    strokes: list[Points] = [[]]
    for x, y in points:
        if isfinite(y):
            strokes[-1].append((x, y))
        elif strokes[-1]:
            strokes.append([])
    return [stroke for stroke in strokes if stroke]


def _path(stroke: Points, frame: _Frame) -> str:
    """SVG path data; empty for a point alone, which a line cannot show."""
    if len(stroke) < 2:
        return ""
    places = [f"{frame.x(x):g} {frame.y(y):g}" for x, y in stroke]
    return f"M{places[0]}L{' '.join(places[1:])}"


def _ends(lines: Sequence[Named], frame: _Frame, height: int) -> list[tuple[Label, str]]:
    """A name at the end of every line, moved apart where two would touch."""
    wanted = []
    for line in lines:
        measured = [y for task in line.curve.smooth for _, y in task if isfinite(y)]
        if measured:
            wanted.append((frame.y(measured[-1]) / 1000 * height, line))
    wanted.sort(key=lambda end: end[0])
    places = [place for place, _ in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_GAP)
    for i in range(len(places)):
        places[i] = min(places[i], height - LABEL_GAP * (len(places) - 1 - i))
    return [
        (Label(round(100 * place / height, 2), line.name), line.style)
        for place, (_, line) in zip(places, wanted, strict=True)
    ]


def _band_labels(bands: Sequence[tuple[float, float]], frame: _Frame, least: float) -> list[Label]:
    """The tasks' numbers over their bands, as many as there is room for."""
    labels: list[Label] = []
    for task, (start, end) in enumerate(bands):
        place = (frame.x(start) + frame.x(end)) / 20
        if not labels or place - labels[-1].at >= 100 * least:
            labels.append(Label(round(place, 2), str(task + 1)))
    return labels


def _describe(lines: Sequence[Named], per_cent: bool) -> str:
    """The chart in words: where every line begins and ends."""
    parts = []
    for line in lines:
        y = [y for task in line.curve.smooth for _, y in task if isfinite(y)]
        if y:
            first, last = (percent(v) if per_cent else f"{v:.3g}" for v in (y[0], y[-1]))
            parts.append(f"{line.name}: {first} at the beginning, {last} at the end.")
    return " ".join(parts)


def _tick(value: float, ticks: Sequence[float], per_cent: bool) -> str:
    step = ticks[1] - ticks[0]
    if per_cent:
        digits = 0 if step >= 0.01 - 1e-12 else 1
        return number(100 * value, digits) + (f"{SPACE}%" if value == ticks[-1] else "")
    largest = max(abs(ticks[0]), abs(ticks[-1]))
    if largest >= 10_000:
        return _short(value)
    if largest < 1e-3:
        return "0" if value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    digits = max(0, ceil(-log10(step) - 1e-9))
    if abs(round(step, digits) - step) > 1e-12:
        digits += 1
    return number(value, digits)


def _short(value: float) -> str:
    """12000 -> "12k"."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
