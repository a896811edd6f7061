"""The page of a sweep: what came of every variant, over its seeds.

In come groups of runs and how the others ended, out goes HTML and, with `write_sweep_report`,
the page with its figures as PNG and CSV beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaizen_dist.common import formatting
from kaizen_dist.common.files import atomic_write
from kaizen_dist.common.formatting import DASH, plural
from kaizen_dist.evaluation import metrics
from kaizen_dist.evaluation.metrics import Metric
from kaizen_dist.report import groups as grouped
from kaizen_dist.report.curves import Curve
from kaizen_dist.report.figures import Chart, Label, Named, line_chart
from kaizen_dist.report.groups import Group
from kaizen_dist.report.heatmap import heat_map
from kaizen_dist.report.page import environment, ramp
from kaizen_dist.report.panels import COLOURS, DASHES
from kaizen_dist.report.plots import MatrixPlot, Plot, Series, write_files
from kaizen_dist.runs.facts import headline

FOLDER = "figures"
LEVEL = "7 5"
"""How a line is dashed that is one value."""
MOST_TICKS = 8
MOST_MAPS = 24
"""More matrices than this are in the files only."""


@dataclass(frozen=True)
class RunRow:
    """How one run of a sweep stands."""

    name: str
    status: str
    note: str
    """Final accuracy, or the last error."""


@dataclass(frozen=True)
class Look:
    """A group in the legend and in the table."""

    name: str
    style: str
    dash: str


@dataclass(frozen=True)
class Bar:
    """A bar and its spread, in per cent of the track's width."""

    name: str
    style: str
    left: float
    width: float
    spread_left: float
    spread_width: float
    text: str


@dataclass(frozen=True)
class BarChart:
    """Bars under one title."""

    title: str
    note: str
    bars: list[Bar]


def write_sweep_report(
    out: Path, title: str, groups: Sequence[Group], runs: Sequence[RunRow]
) -> Path:
    """OUT/report.html and OUT/figures/; returns the page.

    Raises:
        WriteError: if the folder cannot be written.
    """
    measured = [group for group in groups if group.runs]
    course = grouped.accuracy_plot(measured)
    plots = grouped.metric_plots(measured)
    matrices = grouped.matrix_plots(measured)
    files: list[Plot | MatrixPlot] = [*plots, *([course] if course else []), *matrices]
    write_files(files, out / FOLDER)
    page = _render(title, groups, runs, plots, course, matrices)
    target = out / "report.html"
    atomic_write(target, page.encode())
    return target


def _render(
    title: str,
    groups: Sequence[Group],
    runs: Sequence[RunRow],
    plots: Sequence[Plot],
    course: Plot | None,
    matrices: Sequence[MatrixPlot],
) -> str:
    looks = _looks([group.name for group in groups])
    figures = grouped.measured_metrics(groups)
    measured = [group for group in groups if group.runs]
    styles = {look.name: look for look in looks}
    template = environment().get_template("sweep.html.j2")
    course_looks = [
        replace(styles[s.name], dash=LEVEL if s.level else styles[s.name].dash)
        for s in (course.series if course else ())
    ]
    lines = [plot for plot in plots if plot.kind == "lines"]
    names = [series.name for series in lines[0].series] if lines else []
    files: list[Plot | MatrixPlot] = [*plots, *([course] if course else []), *matrices]
    context: dict[str, Any] = {
        "title": title,
        "verdict": _verdict(measured, runs),
        "headline": headline(measured[0].runs[0])[:4] if _one_stream(measured) else [],
        "notices": [],
        "groups": [(looks[i], _cells(group, figures)) for i, group in enumerate(groups)],
        "figures": figures,
        "axis": lines[0].x_name if lines else "",
        "charts": [_chart(plot, _looks(names)) for plot in lines],
        "chart_legend": _looks(names) if len(names) > 1 else [],
        "bars": [_bars(plot, looks) for plot in plots if plot.kind == "bars"],
        "course": _chart(course, course_looks) if course else None,
        "course_legend": course_looks if len(looks) > 1 else [],
        "maps": [
            heat_map(m.title, m.matrix, m.tasks, (), styles[m.title].style)
            for m in matrices[:MOST_MAPS]
        ],
        "most_tasks": max((m.tasks for m in matrices), default=1),
        "runs": runs,
        "files": [(p.title, p.name) for p in files],
        "folder": FOLDER,
    }
    return template.render(ramp=ramp(), **context)


def _looks(names: Sequence[str]) -> list[Look]:
    return [
        Look(name, f"c{i % COLOURS}", DASHES[i // COLOURS % len(DASHES)])
        for i, name in enumerate(names)
    ]


def _one_stream(groups: Sequence[Group]) -> bool:
    return len({r.results.stream.fingerprint for group in groups for r in group.runs}) == 1


def _cells(group: Group, chosen: Sequence[Metric]) -> list[str]:
    """Seeds and metrics of a group, for the table."""
    figures = [
        grouped.shown([figure.of(run.results) for run in group.runs], figure.unit)
        for figure in chosen
    ]
    return [str(len(group.runs)), *figures]


def _verdict(groups: Sequence[Group], runs: Sequence[RunRow]) -> str:
    """Which variant ends best, and how many runs that rests on."""
    done = sum(len(group.runs) for group in groups)
    failed = sum(row.status == "failed" for row in runs)
    rests = f"{done} of {plural(len(runs), 'run')} finished"
    rests += f", {failed} failed." if failed else "."
    scores = [
        (found.mean, group.name, grouped.shown(values))
        for group in groups
        for values in [[run.results.final_accuracy for run in group.runs]]
        if (found := metrics.spread(values)) is not None
    ]
    if len(scores) < 2:
        return rests
    (_, best, top), (_, worst, bottom) = max(scores), min(scores)
    return f"“{best}” ends highest, at {top}; “{worst}” lowest, at {bottom}. {rests}"


def _chart(plot: Plot, looks: Sequence[Look]) -> Chart | None:
    """A plot of lines as it is drawn on the page."""
    scale = 100.0 if plot.points else 1.0
    lines = [
        _named(plot, series, look, scale)
        for series, look in zip(plot.series, looks, strict=True)
        if any(m is not None for m in series.means)
    ]
    reach = [
        (scale * (m - s), scale * (m + s))
        for series in plot.series
        for m, s in zip(series.means, series.spreads, strict=True)
        if m is not None
    ]
    if not reach:
        return None
    # No share, and no difference of two, is above one, whatever its spread: nor need the axis be.
    highest = min(scale, max(high for _, high in reach))
    last, every = len(plot.places) - 1, -(-len(plot.places) // MOST_TICKS)
    return line_chart(
        plot.title,
        lines,
        (-0.4, last + 0.4),
        note=plot.note,
        height=260,
        y_range=(min(0.0, *(low for low, _ in reach)), max(0.01, highest)),
        per_cent=not plot.points,
        x_ticks=[Label(i, text) for i, text in enumerate(plot.places) if i % every == 0],
        x_name=plot.x_name if len(plot.x_name) < 6 else "",
    )


def _named(plot: Plot, series: Series, look: Look, scale: float) -> Named:
    points = [
        (float(i), float("nan") if m is None else scale * m) for i, m in enumerate(series.means)
    ]
    texts = [
        f"{series.name}, {plot.x_name} {place}: {formatting.points(mean)}"
        + (f"{grouped.PLUS_MINUS}{formatting.points(spread)}" if count > 1 else "")
        for place, mean, spread, count in zip(
            plot.places, series.means, series.spreads, series.counts, strict=True
        )
    ]
    if series.level:
        texts = []  # A dot is a place where something was measured.
    spread = [scale * s for s in series.spreads]
    banded = plot.kind == "bands"
    return Named(series.name, look.style, Curve([points], []), look.dash, texts, spread, banded)


def _bars(plot: Plot, looks: Sequence[Look]) -> BarChart:
    """A plot of bars as it is drawn on the page: from zero, to either side."""
    (series,) = plot.series
    styles = {look.name: look.style for look in looks}
    rows = list(zip(plot.places, series.means, series.spreads, series.counts, strict=True))
    reach = [(m - s, m + s) for _, m, s, _ in rows if m is not None]
    low = min(0.0, *(a for a, _ in reach))
    high = max(1e-9, *(b for _, b in reach))

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = []
    for name, mean, spread, count in rows:
        if mean is None:
            bars.append(Bar(name, styles[name], at(0), 0, 0, 0, DASH))
            continue
        ends = sorted((at(0), at(mean)))
        text = formatting.points(mean) + (
            f"{grouped.PLUS_MINUS}{formatting.points(spread)}" if count > 1 else ""
        )
        reached = round(at(mean + spread) - at(mean - spread), 2)
        bars.append(
            Bar(name, styles[name], ends[0], round(ends[1] - ends[0], 2),
                at(mean - spread), reached, text)
        )  # fmt: skip
    unit = "" if plot.points else "per cent"
    return BarChart(plot.title, plot.note or unit, bars)
