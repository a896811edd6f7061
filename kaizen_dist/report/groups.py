"""Runs that differ in their seed alone, taken together: means, spreads, and their figures.

In come groups of finished runs with what tells them apart, out go plots: each metric against
what was varied, accuracy over tasks, and the mean accuracy matrix of every group.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from kaizen_dist.common import formatting
from kaizen_dist.common.formatting import DASH, SPACE
from kaizen_dist.evaluation import metrics
from kaizen_dist.report.plots import MatrixPlot, Plot, Series, file_name
from kaizen_dist.runs.facts import MEANINGS
from kaizen_dist.runs.reader import Run
from kaizen_dist.runs.results import Results

PLUS_MINUS = "\u00a0±\u00a0"
"""Does not break."""
MOST_LINES = 12
"""Charts with more lines than this cannot be read; bars can."""


@dataclass(frozen=True)
class Group:
    """Finished runs of one variant, one a seed."""

    name: str
    varied: dict[str, Any]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Figure:
    """One of the numbers of a run."""

    short: str
    name: str
    column: str
    of: Callable[[Results], float | None]
    points: bool = False

    @property
    def meaning(self) -> str:
        """A line for who has not met it."""
        return _MEANING[self.short]


_MEANING = {short: meaning for short, _, _, meaning in MEANINGS} | {
    "kNN": "Final accuracy by nearest labelled neighbours: what the features alone know.",
    "NCM": "Final accuracy by nearest class means, in place of the trained classifier.",
}

FIGURES = (
    Figure("FA", "Final accuracy", "final_accuracy", lambda r: r.final_accuracy),
    Figure("CA", "Continual accuracy", "continual_accuracy", lambda r: r.continual_accuracy),
    Figure("F", "Forgetting", "forgetting", lambda r: r.forgetting, points=True),
    Figure("FT", "Forward transfer", "forward_transfer", lambda r: r.forward_transfer, points=True),
    Figure("kNN", "kNN on the features", "knn", lambda r: metrics.final_accuracy(r.knn)),
    Figure("NCM", "Nearest class mean", "ncm", lambda r: metrics.final_accuracy(r.ncm or [])),
)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float, int]:
    """(mean, standard deviation of the sample, count) of what was measured; spread 0 of one."""
    measured = [v for v in values if v is not None]
    if not measured:
        return None, 0.0, 0
    return fmean(measured), stdev(measured) if len(measured) > 1 else 0.0, len(measured)


def shown(values: Sequence[float | None], points: bool = False) -> str:
    """Mean ± standard deviation in per cent or points, for people."""
    mean, spread, count = mean_and_spread(values)
    if mean is None:
        return DASH
    around = f"{PLUS_MINUS}{formatting.points(spread)}" if count > 1 else ""
    return f"{formatting.points(mean)}{around}" + ("" if points else f"{SPACE}%")


def measured_figures(groups: Sequence[Group]) -> list[Figure]:
    """Those that some run has a value for."""
    runs = [run.results for group in groups for run in group.runs]
    return [figure for figure in FIGURES if any(figure.of(r) is not None for r in runs)]


def metric_plots(groups: Sequence[Group]) -> list[Plot]:
    """Every metric that was measured, against what was varied."""
    axis = _numeric_key(groups)
    return [
        _against(groups, figure, axis) if axis else _bars(groups, figure)
        for figure in measured_figures(groups)
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
    if not any(m is not None for s in series for m in s.means):
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
        [mean_and_spread(cells)[0] for cells in zip(*rows, strict=True)]
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


def _against(groups: Sequence[Group], figure: Figure, axis: str) -> Plot:
    places = sorted({group.varied[axis] for group in groups})
    series = []
    for line in dict.fromkeys(_rest(group, axis) for group in groups):
        own = {group.varied[axis]: group for group in groups if _rest(group, axis) == line}
        values = [
            [figure.of(run.results) for run in own[place].runs] if place in own else []
            for place in places
        ]
        series.append(_series(line, values))
    return Plot(
        f"{figure.column}_over_{file_name(axis)}",
        figure.name,
        "points" if figure.points else "",
        "lines",
        axis,
        tuple(json.dumps(place) for place in places),
        tuple(series),
        figure.points,
    )


def _bars(groups: Sequence[Group], figure: Figure) -> Plot:
    values = [[figure.of(run.results) for run in group.runs] for group in groups]
    return Plot(
        figure.column,
        figure.name,
        "points" if figure.points else "",
        "bars",
        "variant",
        tuple(group.name for group in groups),
        (_series(figure.short, values),),
        figure.points,
    )


def _series(name: str, values: Sequence[Sequence[float | None]]) -> Series:
    means, spreads, counts = zip(*(mean_and_spread(at) for at in values), strict=True)
    return Series(name, means, spreads, counts)
