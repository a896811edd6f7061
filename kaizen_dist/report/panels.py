"""Charts of a report: accuracy over tasks, the losses, learning rate and speed.

One run shows its steps and the values behind each smoothed line; several runs lie over each
other, task by task.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from kaizen_dist.common.formatting import percent
from kaizen_dist.evaluation import metrics
from kaizen_dist.learner.terms import BEYOND, TITLES
from kaizen_dist.report.charts import Chart, Line, Look
from kaizen_dist.report.curves import curve, step_axis, task_axis
from kaizen_dist.report.palette import COLOURS, INK, SOFT
from kaizen_dist.report.verdict import chance_over_tasks
from kaizen_dist.runs.reader import Run

Styled: TypeAlias = tuple[Run, Look]


def accuracy_over_tasks(run: Run) -> Chart | None:
    """One run: classifier and kNN over the tasks, and what guessing would get."""
    results = run.results
    chance = np.array([*enumerate(chance_over_tasks(run))], dtype=float).reshape(-1, 2)
    lines = [
        _measured("classifier", COLOURS[0], "", results.accuracy),
        _measured("kNN", COLOURS[1], "7 4", results.knn),
        Line("guessing", chance, SOFT, "1 5"),
    ]
    shown = [line for line in lines if line.reach()]
    return _task_chart("Accuracy over tasks", shown, results.stream.tasks, label_ends=True)


def accuracies_of(runs: Sequence[Styled]) -> list[Chart]:
    """Several runs: one chart of the classifiers and one of kNN, on the same scale."""
    tasks = max(run.results.stream.tasks for run, _ in runs)
    panels = {
        "Classifier": [_of_run(look, run.results.accuracy) for run, look in runs],
        "kNN on the features": [_of_run(look, run.results.knn) for run, look in runs],
    }
    reach = [line.reach() for lines in panels.values() for line in lines]
    highest = max((r[1] for r in reach if r), default=1.0)
    charts = [_task_chart(title, lines, tasks, highest=highest) for title, lines in panels.items()]
    return [chart for chart in charts if chart]


def losses(runs: Sequence[Styled]) -> tuple[Chart | None, list[Chart]]:
    """The total, and every term that is on in some run."""
    total = _logged(runs, "loss", "Loss", "sum of the weighted terms", height=240)
    on = [term for term in TITLES if any(run.events.is_on(term) for run, _ in runs)]
    terms = [_logged(runs, term, *TITLES[term], height=130) for term in on]
    return total, [chart for chart in terms if chart]


def terms_off(runs: Sequence[Styled]) -> list[str]:
    """Titles of the method's terms that are on in none of the runs."""
    return [
        title.lower()
        for term, (title, _) in TITLES.items()
        if term not in BEYOND and not any(run.events.is_on(term) for run, _ in runs)
    ]


def machinery(runs: Sequence[Styled]) -> list[Chart]:
    """Learning rate and speed."""
    charts = [
        _logged(runs, "lr", "Learning rate", from_zero=True),
        _logged(runs, "images_per_second", "Images per second", from_zero=True),
        _logged(runs, "data_wait", "Waiting for data", from_zero=True, unit="%"),
    ]
    return [chart for chart in charts if chart]


def _measured(name: str, colour: str, dash: str, matrix: metrics.Matrix) -> Line:
    """A line through one value a task; a task without a value breaks it."""
    values = metrics.accuracy_over_tasks(matrix)
    points = np.array([(t, np.nan if v is None else v) for t, v in enumerate(values)], dtype=float)
    hints = [
        f"{name}, after task {t + 1}: {percent(v)}" for t, v in enumerate(values) if v is not None
    ]
    return Line(name, points.reshape(-1, 2), colour, dash, hints=hints)


def _of_run(look: Look, matrix: metrics.Matrix) -> Line:
    return _measured(look.name, COLOURS[look.number], look.dash, matrix)


def _task_chart(
    title: str,
    lines: Sequence[Line],
    tasks: int,
    *,
    label_ends: bool = False,
    highest: float = 0.0,
) -> Chart | None:
    reach = [r for r in (line.reach() for line in lines) if r]
    if not reach:
        return None
    every = -(-tasks // 10)
    return Chart(
        title,
        lines,
        (-0.5, tasks - 0.5),
        note="mean over the tasks seen by then",
        height=280,
        y_range=(0.0, max(highest, *(r[1] for r in reach), 0.01)),
        unit="%",
        x_ticks=[(t, str(t + 1)) for t in range(every - 1 if every > 1 else 0, tasks, every)],
        x_name="task",
        label_ends=label_ends,
    )


def _logged(
    runs: Sequence[Styled],
    column: str,
    title: str,
    note: str = "",
    *,
    height: int = 110,
    from_zero: bool = False,
    unit: Literal["", "%"] = "",
) -> Chart | None:
    """A column of events.jsonl: by steps for one run, by tasks for several."""
    alone = len(runs) == 1
    lines = []
    for run, look in runs:
        finished = run.results.finished
        x = step_axis(run.events)[0] if alone else task_axis(run.events, finished=finished)
        smooth, raw = curve(run.events, column, x)
        if alone:
            lines.append(Line(title, smooth, INK if column == "loss" else COLOURS[0], raw=raw))
        else:
            lines.append(Line(look.name, smooth, COLOURS[look.number], look.dash))
    reach = [r for r in (line.reach() for line in lines) if r]
    if not reach:
        return None
    tasks = max(int(run.events.task.max()) + 1 for run, _ in runs if len(run.events))
    equal = [(float(t), float(t + 1)) for t in range(tasks)]
    bands = step_axis(runs[0][0].events)[1] if alone else equal
    return Chart(
        title,
        lines,
        (0.0, bands[-1][1]),
        note=note,
        height=height,
        y_range=(0.0, max(*(r[1] for r in reach), 1e-12)) if from_zero else None,
        unit=unit,
        x_ticks=None if alone else (),
        x_name="step" if alone else "",
        bands=bands,
    )
