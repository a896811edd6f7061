"""The page of a sweep: the outcome of every variant, over its seeds, with its figures as files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaizen_dist.common.files import atomic_write
from kaizen_dist.common.formatting import plural
from kaizen_dist.evaluation import metrics
from kaizen_dist.evaluation.metrics import Metric
from kaizen_dist.report import groups as grouped
from kaizen_dist.report.charts import looks
from kaizen_dist.report.groups import Group
from kaizen_dist.report.heatmap import heat_map
from kaizen_dist.report.page import rendered
from kaizen_dist.report.plots import LEVEL, MatrixPlot, Plot, bar_chart, line_chart, write_files
from kaizen_dist.runs.facts import headline

FOLDER = "figures"
MOST_MAPS = 24
"""More matrices than this are in the files only."""


@dataclass(frozen=True)
class RunRow:
    """How one run of a sweep stands."""

    name: str
    status: str
    note: str
    """Final accuracy, or the last error."""


def write_sweep_report(
    out: Path, title: str, groups: Sequence[Group], runs: Sequence[RunRow]
) -> Path:
    """OUT/report.html and OUT/figures/; returns the page.

    Raises:
        WriteError: if the folder cannot be written.
    """
    target = out / "report.html"
    page = _render(out / FOLDER, title, groups, runs)
    atomic_write(target, page.encode())
    return target


def _render(folder: Path, title: str, groups: Sequence[Group], runs: Sequence[RunRow]) -> str:
    """The page; its figures are written into `folder`."""
    measured = [group for group in groups if group.runs]
    own = looks([group.name for group in groups])
    by_name = {look.name: look for look in own}
    shown = grouped.measured_metrics(groups)
    plots = grouped.metric_plots(measured)
    course = grouped.accuracy_plot(measured)
    matrices = grouped.matrix_plots(measured)
    files: list[Plot | MatrixPlot] = [*plots, *([course] if course else []), *matrices]
    write_files(files, folder)
    lines = [plot for plot in plots if plot.kind == "lines"]
    line_looks = looks([series.name for series in lines[0].series]) if lines else []
    course_looks = [
        replace(by_name[s.name], dash=LEVEL) if s.level else by_name[s.name]
        for s in (course.series if course else ())
    ]
    context: dict[str, Any] = {
        "title": title,
        "verdict": _verdict(measured, runs),
        "headline": headline(measured[0].runs[0])[:4] if _one_stream(measured) else [],
        "groups": [
            (look, len(group.runs), [_cell(group, metric) for metric in shown])
            for look, group in zip(own, groups, strict=True)
        ],
        "metrics": shown,
        "axis": lines[0].x_name if lines else "",
        "charts": [line_chart(plot, line_looks) for plot in lines],
        "chart_legend": line_looks if len(line_looks) > 1 else [],
        "bars": [bar_chart(plot, own) for plot in plots if plot.kind == "bars"],
        "course": line_chart(course, course_looks) if course else None,
        "course_legend": course_looks if len(own) > 1 else [],
        "maps": [
            heat_map(m.title, m.matrix, m.tasks, (), by_name[m.title].style)
            for m in matrices[:MOST_MAPS]
        ],
        "most_tasks": max((m.tasks for m in matrices), default=1),
        "runs": runs,
        "files": [(plot.title, plot.name) for plot in files],
        "folder": FOLDER,
    }
    return rendered("sweep.html.j2", context)


def _one_stream(groups: Sequence[Group]) -> bool:
    return len({r.results.stream.fingerprint for group in groups for r in group.runs}) == 1


def _cell(group: Group, metric: Metric) -> str:
    return grouped.shown([metric.of(run.results) for run in group.runs], metric.unit)


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
