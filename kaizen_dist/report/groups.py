"""Runs that differ in their seed alone, taken together: means, spreads, and their figures.

In come groups of finished runs with what tells them apart, out go plots: each metric against
what was varied, accuracy over tasks, and the mean accuracy matrix of every group.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kaizen_dist.common.formatting import DASH, SPACE
from kaizen_dist.evaluation import metrics
from kaizen_dist.evaluation.metrics import METRICS, Metric
from kaizen_dist.report.plots import MatrixPlot, Plot, Series, file_name, with_spread
from kaizen_dist.runs.reader import Run

MOST_LINES = 12
"""Charts with more lines than this cannot be read; bars can."""


@dataclass(frozen=True)
class Group:
    """Finished runs of one variant, one a seed."""

    name: str
    varied: dict[str, Any]
    runs: tuple[Run, ...]


def shown(values: Iterable[float | None], unit: str = "%") -> str:
    """Mean ± standard deviation in per cent or points, for people."""
    found = metrics.spread(values)
    return DASH if found is None else with_spread(found) + (f"{SPACE}%" if unit == "%" else "")


def measured_metrics(groups: Sequence[Group]) -> list[Metric]:
    """Those that some run has a value for."""
    runs = [run.results for group in groups for run in group.runs]
    return [metric for metric in METRICS if any(metric.of(r) is not None for r in runs)]


def metric_plots(groups: Sequence[Group]) -> list[Plot]:
    """Every metric that was measured, against what was varied."""
    axis = _numeric_key(groups)
    return [
        _against(groups, metric, axis) if axis else _bars(groups, metric)
        for metric in measured_metrics(groups)
    ]


def accuracy_plot(groups: Sequence[Group]) -> Plot | None:
    """Mean accuracy over the tasks seen so far, as each group goes along its stream.

    Those that learn all classes as one task (the ceiling, beside streams of several) are a level.
    """
    tasks = max((run.results.stream.tasks for group in groups for run in group.runs), default=0)
    series = []
    for group in groups:
        courses = [metrics.accuracy_over_tasks(run.results.accuracy) for run in group.runs]
        level = tasks > 1 and all(run.results.stream.tasks == 1 for run in group.runs)
        if level:
            courses = [[value] * tasks for course in courses for value in course]
        at = [[c[t] if t < len(c) else None for c in courses] for t in range(tasks)]
        series.append(replace(_series(group.name, at), level=level and bool(group.runs)))
    if not any(found for s in series for found in s.values):
        return None
    return Plot(
        "accuracy_over_tasks",
        "Accuracy over tasks",
        "classifier, mean over the tasks seen by then"
        + ("; dashed: all classes as one task" if any(s.level for s in series) else ""),
        "bands",
        "task",
        tuple(str(t + 1) for t in range(tasks)),
        tuple(series),
    )


def matrix_plots(groups: Sequence[Group]) -> list[MatrixPlot]:
    """The accuracy matrix of every group (of at least one run), the mean over its runs."""
    plots = []
    for number, group in enumerate(groups, start=1):
        of = [r.results.accuracy for r in group.runs]
        if metrics.final_accuracy(of[0]) is None:
            of = [r.results.knn for r in group.runs]
        tasks = group.runs[0].results.stream.tasks
        # Numbered: two names may have the same plain form.
        name = f"matrix_{number:02d}_{file_name(group.name)}"
        plots.append(MatrixPlot(name, group.name, _mean_matrix(of), tasks))
    return plots


def _mean_matrix(matrices: Sequence[metrics.Matrix]) -> list[list[float | None]]:
    return [
        [found.mean if found else None for found in map(metrics.spread, zip(*rows, strict=True))]
        for rows in zip(*matrices, strict=True)
    ]


def _numeric_key(groups: Sequence[Group]) -> str | None:
    """The first key with at least three numbers, if what else varies makes few enough lines."""
    for key in dict.fromkeys(key for group in groups for key in group.varied):
        values = [group.varied.get(key) for group in groups]
        numbers = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
        lines = {_rest(group, key) for group in groups}
        if len(numbers) > 2 and None not in values and len(lines) <= MOST_LINES:
            return key
    return None


def _rest(group: Group, axis: str) -> str:
    """What tells a line from the others, the axis apart."""
    rest = {k: v for k, v in group.varied.items() if k != axis}
    texts = [v if isinstance(v, str) else f"{k}={json.dumps(v)}" for k, v in rest.items()]
    return ", ".join(texts) or "all"


def _against(groups: Sequence[Group], metric: Metric, axis: str) -> Plot:
    places = sorted({group.varied[axis] for group in groups})
    series = []
    for line in dict.fromkeys(_rest(group, axis) for group in groups):
        own = {group.varied[axis]: group for group in groups if _rest(group, axis) == line}
        values = [
            [metric.of(run.results) for run in own[place].runs] if place in own else []
            for place in places
        ]
        series.append(_series(line, values))
    name, texts = f"{metric.key}_over_{file_name(axis)}", tuple(map(json.dumps, places))
    return _plot(name, metric, "lines", axis, texts, tuple(series))


def _bars(groups: Sequence[Group], metric: Metric) -> Plot:
    values = [[metric.of(run.results) for run in group.runs] for group in groups]
    names = tuple(group.name for group in groups)
    return _plot(metric.key, metric, "bars", "variant", names, (_series(metric.short, values),))


def _plot(
    name: str,
    metric: Metric,
    kind: Literal["lines", "bars"],
    x_name: str,
    places: tuple[str, ...],
    series: tuple[Series, ...],
) -> Plot:
    note = "points" if metric.unit == "points" else ""
    return Plot(name, metric.name, note, kind, x_name, places, series, metric.unit)


def _series(name: str, values: Sequence[Sequence[float | None]]) -> Series:
    return Series(name, tuple(map(metrics.spread, values)))
