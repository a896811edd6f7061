"""Several runs side by side: their figures, their settings where they differ, their names.

In come runs, out go columns and rows of text in the runs' order. A figure leads only among
runs that learnt the same stream equally far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kaizen_dist.config import flatten, is_silent
from kaizen_dist.evaluation import metrics
from kaizen_dist.report import words
from kaizen_dist.report.facts import rate, setting
from kaizen_dist.report.runs import Run

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


def compared(runs: Sequence[Run]) -> list[Compared]:
    """The figures of several runs, column by column."""
    same = words.comparable(runs)

    def column(
        short: str,
        name: str,
        of: Callable[[Run], float | None],
        show: Callable[[float | None], str],
        lead: Callable[[Sequence[float]], float] | None,
    ) -> Compared:
        values = [of(run) for run in runs]
        measured = [v for v in values if v is not None]
        top = show(lead(measured)) if lead and same and len(measured) > 1 else None
        return Compared(short, name, [show(v) for v in values], [show(v) == top for v in values])

    return [
        column("FA", "Final accuracy", lambda r: r.results.final_accuracy, words.percent, max),
        column("CA", "Continual accuracy", lambda r: r.results.continual_accuracy,
               words.percent, max),
        column("F", "Forgetting, points", lambda r: r.results.forgetting, words.points, min),
        column("FT", "Forward transfer, points", lambda r: r.results.forward_transfer,
               words.points, max),
        column("kNN", "Final accuracy of kNN on the features",
               lambda r: metrics.final_accuracy(r.results.knn), words.percent, max),
        column("images/s", "Images per second over all processes",
               lambda r: r.results.images_per_second, rate, None),
        column("processes", "World size", lambda r: float(r.results.world_size), _count, None),
        column("time", "Wall time", lambda r: r.results.wall_seconds, words.duration, None),
    ]  # fmt: skip


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Settings in which runs differ; those that change what is computed come first."""
    flats = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = [
        Difference(key, [setting(flat[key]) if key in flat else ABSENT for flat in flats])
        for key in sorted(keys, key=is_silent)
    ]
    return [row for row in rows if len(set(row.values)) > 1]


def names(runs: Sequence[Run]) -> list[str]:
    """A name for every run: its folder's, with as many parents as tell it from the others."""
    parts = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, parts), default=1)
    chosen: list[str] = []
    for own in parts:
        depth = 1
        while depth < deepest and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        chosen.append("/".join(own[-depth:]))
    return chosen


def _count(value: float | None) -> str:
    return words.DASH if value is None else words.number(value)
