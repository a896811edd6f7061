"""Which charts a report has: accuracy over tasks, the losses, learning rate and speed.

In come runs with their styles, out go laid-out charts. One run shows its steps and the
values behind each smoothed line; several runs lie over each other, task by task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kaizen_dist.common.formatting import percent
from kaizen_dist.evaluation import metrics
from kaizen_dist.learner.terms import TERMS, TITLES
from kaizen_dist.report.curves import Curve, curve, step_axis, task_axis
from kaizen_dist.report.figures import (
    SMALL,
    Chart,
    Label,
    Named,
    count_ticks,
    line_chart,
)
from kaizen_dist.report.verdict import chance_over_tasks
from kaizen_dist.runs.reader import Run

COLOURS = 7
DASHES = ("", "7 4", "2 4")
"""How the lines of a page look: seven colours, then the same again dashed, then dotted."""


@dataclass(frozen=True)
class Styled:
    """A run with the name and the style it has all over the page."""

    run: Run
    name: str
    style: str
    dash: str


def styled(runs: Sequence[Run], names: Sequence[str]) -> list[Styled]:
    """Seven colours; after them the same again, dashed, then dotted."""
    return [
        Styled(run, name, f"c{i % COLOURS}", DASHES[i // COLOURS % len(DASHES)])
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


def accuracy_over_tasks(run: Run) -> Chart | None:
    """One run: classifier and kNN over the tasks, with what guessing would get."""
    results = run.results
    lines = [
        _measured("classifier", "c0", metrics.accuracy_over_tasks(results.accuracy)),
        _measured("kNN", "c1", metrics.accuracy_over_tasks(results.knn), "7 4"),
    ]
    chance = chance_over_tasks(run)
    lines.append(_measured("guessing", "muted", [*chance], "1 5"))
    return _task_chart(
        "Accuracy over tasks",
        [line for line in lines if line.curve.range()],
        results.stream.tasks,
        label_ends=True,
    )


def accuracies_of(runs: Sequence[Styled]) -> list[Chart]:
    """Several runs: one chart of the classifiers and one of kNN, on the same scale."""
    tasks = max(s.run.results.stream.tasks for s in runs)
    panels = {
        "Classifier": [_of_run(s, s.run.results.accuracy) for s in runs],
        "kNN on the features": [_of_run(s, s.run.results.knn) for s in runs],
    }
    ranges = [line.curve.range() for lines in panels.values() for line in lines]
    highest = max((r[1] for r in ranges if r), default=1.0)
    charts = [_task_chart(title, lines, tasks, highest=highest) for title, lines in panels.items()]
    return [chart for chart in charts if chart]


def losses(runs: Sequence[Styled]) -> tuple[Chart | None, list[Chart]]:
    """The total, and every term that is on in some run."""
    total = _logged(runs, "loss", "Loss", "sum of the weighted terms", height=240)
    terms = [
        _logged(runs, term, *TITLES[term], height=130)
        for term in TERMS
        if any(s.run.events.is_on(term) for s in runs)
    ]
    return total, [chart for chart in terms if chart]


def terms_off(runs: Sequence[Styled]) -> list[str]:
    """Titles of the terms that are on in none of the runs."""
    return [
        TITLES[term][0].lower() for term in TERMS if not any(s.run.events.is_on(term) for s in runs)
    ]


def machinery(runs: Sequence[Styled]) -> list[Chart]:
    """Learning rate and speed."""
    charts = [
        _logged(runs, "lr", "Learning rate", from_zero=True),
        _logged(runs, "images_per_second", "Images per second", from_zero=True),
        _logged(runs, "data_wait", "Waiting for data", from_zero=True, per_cent=True),
    ]
    return [chart for chart in charts if chart]


def _measured(name: str, style: str, values: Sequence[float | None], dash: str = "") -> Named:
    """A line through one value a task; a task without a value breaks it."""
    points = [(float(t), float("nan") if v is None else v) for t, v in enumerate(values)]
    texts = [f"{name}, after task {t + 1}: {percent(v)}" for t, v in enumerate(values)]
    return Named(name, style, Curve([points], []), dash, texts)


def _of_run(s: Styled, matrix: metrics.Matrix) -> Named:
    return _measured(s.name, s.style, metrics.accuracy_over_tasks(matrix), s.dash)


def _task_chart(
    title: str,
    lines: Sequence[Named],
    tasks: int,
    *,
    label_ends: bool = False,
    highest: float | None = None,
) -> Chart | None:
    ranges = [r for r in (line.curve.range() for line in lines) if r]
    if not ranges:
        return None
    top = max(highest or 0.0, *(r[1] for r in ranges), 0.01)
    every = -(-tasks // 10)
    return line_chart(
        title,
        lines,
        (-0.5, tasks - 0.5),
        note="mean over the tasks seen by then",
        height=280,
        y_range=(0.0, top),
        per_cent=True,
        x_ticks=[Label(t, str(t + 1)) for t in range(every - 1 if every > 1 else 0, tasks, every)],
        label_ends=label_ends,
        x_name="task",
    )


def _logged(
    runs: Sequence[Styled],
    column: str,
    title: str,
    note: str = "",
    *,
    height: int = 110,
    from_zero: bool = False,
    per_cent: bool = False,
) -> Chart | None:
    """A column of events.jsonl: by steps for one run, by tasks for several."""
    alone = len(runs) == 1
    lines = []
    for s in runs:
        events = s.run.events
        x = step_axis(events)[0] if alone else task_axis(events, finished=s.run.results.finished)
        style = ("ink" if column == "loss" else "c0") if alone else s.style
        name = title if alone else s.name
        lines.append(Named(name, style, curve(events, column, x, raw=alone), s.dash))
    bands = step_axis(runs[0].run.events)[1] if alone else _equal_bands(runs)
    end = bands[-1][1] if bands else 1.0
    ranges = [r for r in (line.curve.range() for line in lines) if r]
    y_range = (0.0, max(*(r[1] for r in ranges), 1e-12)) if ranges and from_zero else None
    return line_chart(
        title,
        lines,
        (0.0, end),
        note=note,
        height=height,
        y_range=y_range,
        per_cent=per_cent,
        x_ticks=count_ticks(end, 7 if height > SMALL else 4) if alone else (),
        bands=bands,
        x_name="step" if alone else "",
    )


def _equal_bands(runs: Sequence[Styled]) -> list[tuple[float, float]]:
    tasks = max((int(s.run.events.task.max()) + 1 for s in runs if len(s.run.events)), default=0)
    return [(float(t), float(t + 1)) for t in range(tasks)]
