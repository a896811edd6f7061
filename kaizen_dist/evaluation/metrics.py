"""The metrics of a continual run: final and continual accuracy, forgetting, forward transfer.

In comes the accuracy matrix R: row t is measured after task t was learnt, column i on the
validation set of task i, as fractions in [0, 1]; None where nothing was measured. Out come
fractions, or None where there is nothing to average: "not measured" is never 0.

R has one row for every task finished so far, so that the metrics of an unfinished run are
those of the stream up to its last finished task T. A row has at least as many columns as
there are tasks up to it; columns of tasks still to come are not part of any metric here.
A cell without a value (a task without validation images, say) is left out of its mean.

Definitions: Kaizen (arXiv 2303.17235, section 4) and CaSSLe (arXiv 2112.04215, section 5).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

Row: TypeAlias = list[float | None]
"""Accuracies measured at one time, a column a task."""
Matrix: TypeAlias = Sequence[Sequence[float | None]]
"""R[t][i]: accuracy on task i after task t, a fraction, or None where unmeasured."""


def final_accuracy(R: Matrix) -> float | None:
    """FA = mean_i R[T, i]: how well every task seen so far is known at the end."""
    return _mean(_seen(R, len(R) - 1)) if R else None


def weighted_final_accuracy(R: Matrix, sizes: Sequence[int]) -> float | None:
    """FA with every task weighted by its number of validation images.

    `sizes[i]` is that number for task i. This is the accuracy over the union of the
    validation sets, which differs from FA when tasks are of unequal size.
    """
    if not R:
        return None
    last = _seen(R, len(R) - 1)
    if len(sizes) < len(last):
        raise ValueError(f"{len(last)} tasks have an accuracy, but only {len(sizes)} a size")
    measured = [(a, n) for a, n in zip(last, sizes, strict=False) if a is not None]
    total = sum(n for _, n in measured)
    return fsum(a * n for a, n in measured) / total if total else None


def accuracy_over_tasks(R: Matrix) -> list[float | None]:
    """For every t the mean over the tasks seen by then: mean_{i<=t} R[t, i]."""
    return [_mean(_seen(R, t)) for t in range(len(R))]


def continual_accuracy(R: Matrix) -> float | None:
    """CA = mean_t mean_{i<=t} R[t, i]: how well a model deployed after any task does."""
    return _mean(accuracy_over_tasks(R))


def forgetting_per_task(R: Matrix) -> list[float | None]:
    """For every task i < T its best accuracy before T, less the one after T.

    Negative where a task is known better at the end than ever before. Empty for one task.
    """
    if not R:
        return []
    earlier, last = R[:-1], _seen(R, len(R) - 1)
    lost: list[float | None] = []
    for task, now in enumerate(last[:-1]):
        measured = [row[task] for row in earlier if task < len(row)]
        known = [a for a in measured if a is not None]
        lost.append(max(known) - now if known and now is not None else None)
    return lost


def forgetting(R: Matrix) -> float | None:
    """F = mean_{i<T} (max_{t<T} R[t, i] - R[T, i]); None for one task, which has no past."""
    return _mean(forgetting_per_task(R))


def forward_transfer(
    probe_before: Sequence[float | None], probe_random: Sequence[float | None]
) -> float | None:
    """FT = mean_{i>=2} (R'[i-1, i] - r_i): what earlier tasks taught about those to come.

    `probe_before[i]` is the accuracy of a linear probe for task i on the backbone as it
    was before that task, `probe_random[i]` the same probe on a random backbone. The first
    task, before which nothing was learnt, does not count, whatever its entries hold.
    """
    if len(probe_before) != len(probe_random):
        raise ValueError(
            f"one probe of each kind a task: {len(probe_before)} before, {len(probe_random)} random"
        )
    pairs = zip(probe_before[1:], probe_random[1:], strict=True)
    return _mean(b - r if b is not None and r is not None else None for b, r in pairs)


def _seen(R: Matrix, t: int) -> Sequence[float | None]:
    """Row t as far as the tasks seen by then."""
    if len(R[t]) <= t:
        raise ValueError(f"row {t} of the accuracy matrix has {len(R[t])} columns, not {t + 1}")
    return R[t][: t + 1]


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return fsum(measured) / len(measured) if measured else None


@dataclass(frozen=True)
class Metric:
    """One number that summarises a run: how it is named, shown and computed."""

    key: str
    """Column in tables, and name of its figures."""
    short: str
    name: str
    unit: Literal["%", "points"]
    """Points: a difference of two accuracies."""
    meaning: str
    of: Callable[[Any], float | None]
    """From a run's `Results`; a fraction, or None where it was not measured."""
    better: Callable[[Iterable[float]], float] = max


METRICS = (
    Metric(
        "final_accuracy",
        "FA",
        "Final accuracy",
        "%",
        "Mean over all tasks, measured after the last one.",
        lambda results: results.final_accuracy,
    ),
    Metric(
        "continual_accuracy",
        "CA",
        "Continual accuracy",
        "%",
        "Mean over the tasks seen so far, averaged over the whole stream.",
        lambda results: results.continual_accuracy,
    ),
    Metric(
        "forgetting",
        "F",
        "Forgetting",
        "points",
        "Accuracy lost on earlier tasks since the best on each. Lower is better.",
        lambda results: results.forgetting,
        better=min,
    ),
    Metric(
        "forward_transfer",
        "FT",
        "Forward transfer",
        "points",
        "Gain of a linear probe on the next task over random features.",
        lambda results: results.forward_transfer,
    ),
    Metric(
        "knn_final_accuracy",
        "kNN",
        "kNN on the features",
        "%",
        "Final accuracy of a vote of the nearest labelled neighbours: the features alone.",
        lambda results: final_accuracy(results.knn),
    ),
    Metric(
        "ncm_final_accuracy",
        "NCM",
        "Nearest class mean",
        "%",
        "Final accuracy by the nearest class mean, instead of the trained classifier.",
        lambda results: final_accuracy(results.ncm or []),
    ),
    Metric(
        "oracle_final_accuracy",
        "Oracle",
        "Class means of all past images",
        "%",
        "Final accuracy of the head that looks at all past training images again: what is left.",
        lambda results: final_accuracy(results.oracle or []),
    ),
    Metric(
        "calibration_error",
        "ECE",
        "Calibration error",
        "points",
        "How far the classifier's confidence is from its accuracy. Lower is better.",
        lambda results: results.calibration[-1] if results.calibration else None,
        better=min,
    ),
)
FOUR = METRICS[:4]
"""The metrics of the paper, of the classifier."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of a metric over seeds."""

    mean: float
    deviation: float | None
    """None for a single run."""
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the measured values; None if there are none."""
    measured = [v for v in values if v is not None]
    if not measured:
        return None
    return Spread(fmean(measured), stdev(measured) if len(measured) > 1 else None, len(measured))
