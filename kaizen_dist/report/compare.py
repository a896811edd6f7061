"""Several runs side by side: which leads, their figures, where their settings differ.

In come runs, out go columns and rows of text in the runs' order. A figure leads only among
runs that learnt the same stream equally far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kaizen_dist.common.console import one_line
from kaizen_dist.common.formatting import duration, number, percent, plural, points
from kaizen_dist.config import flatten, is_silent
from kaizen_dist.evaluation.metrics import METRICS, Metric
from kaizen_dist.runs.facts import rate, setting
from kaizen_dist.runs.reader import Run

ABSENT = "not set"


@dataclass(frozen=True)
class Compared:
    """One figure of several runs; `best` marks those that lead, where leading means anything."""

    short: str
    name: str
    values: list[str]
    best: list[bool]


@dataclass(frozen=True)
class Difference:
    """A setting in which runs differ, a value a run."""

    key: str
    values: list[str]


def verdict(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Which of several runs ends best, and by how much, where that can be said."""
    if len({run.results.stream.fingerprint for run in runs}) > 1:
        return "These runs learnt different streams, so their numbers do not compare."
    done = [run.tasks_done for run in runs]
    if min(done) < max(done):
        return (
            f"These runs have learnt {min(done)} to {plural(max(done), 'task')}, so their "
            "final numbers do not compare."
        )
    scores = [(run.results.final_accuracy, name) for run, name in zip(runs, names, strict=True)]
    measured = [(score, name) for score, name in scores if score is not None]
    if len(measured) < 2:
        return f"{plural(len(runs), 'run')} side by side."
    (best, leader), (worst, last) = max(measured), min(measured)
    after = f"After {plural(done[0], 'task')}"
    if percent(best) == percent(worst):
        return f"{after} all runs are at {percent(best)}."
    return (
        f"{after} “{leader}” is ahead: it names {percent(best, 0)} of images right, on "
        f"average over the tasks, where “{last}” names {percent(worst, 0)}."
    )


def comparable(runs: Sequence[Run]) -> bool:
    """Whether all runs learnt the same stream and got equally far."""
    return len({(run.results.stream.fingerprint, run.tasks_done) for run in runs}) == 1


def metrics_of(runs: Sequence[Run]) -> list[Metric]:
    """The four metrics, kNN, and what else was measured for some run."""
    return [m for m in METRICS if m in METRICS[:5] or any(m.of(run.results) for run in runs)]


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Metrics and speed of several runs, column by column."""
    columns = []
    for metric in metrics_of(runs):
        show = points if metric.unit == "points" else percent
        values = [metric.of(run.results) for run in runs]
        measured = [v for v in values if v is not None]
        lead = comparable(runs) and len(measured) > 1
        best = show(metric.better(measured)) if lead else None
        name = f"{metric.name}, points" if metric.unit == "points" else metric.name
        columns.append(_column(metric.short, name, [show(v) for v in values], best))
    of = [run.results for run in runs]
    return [
        *columns,
        _column("images/s", "Images per second over all ranks",
                [rate(r.images_per_second) for r in of]),
        _column("ranks", "World size", [number(r.world_size) for r in of]),
        _column("time", "Wall time", [duration(r.wall_seconds) for r in of]),
    ]  # fmt: skip


def _column(short: str, name: str, values: list[str], best: str | None = None) -> Compared:
    return Compared(short, name, values, [value == best for value in values])


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Settings in which runs differ; those that change what is computed come first."""
    flats = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    return [
        Difference(key, [setting(flat[key]) if key in flat else ABSENT for flat in flats])
        for key in sorted(keys, key=is_silent)
        if any(key not in flat or flat[key] != flats[0][key] for flat in flats)
    ]


def names(runs: Sequence[Run]) -> list[str]:
    """A name for every run: its folder's, with as many parents as tell it from the others."""
    parts = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, parts), default=1)
    chosen: list[str] = []
    for own in parts:
        depth = 1
        while depth < deepest and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        chosen.append(one_line("/".join(own[-depth:])))
    return chosen
