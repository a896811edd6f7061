"""Columns of logged numbers as points to draw: smoothed, thinned, and in steps or tasks.

Every task is treated on its own, so that nothing is smoothed across the jump between two tasks;
a NaN separates them.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.learner.terms import TERMS
from kaizen_dist.report.charts import Points
from kaizen_dist.runs.reader import Events

Floats: TypeAlias = NDArray[np.float64]

BUCKETS = 240
"""Points of a curve, at most: more than a screen has pixels for adds bytes, not detail."""
SMOOTHING = 20
"""A task's curve is a moving mean over this part of its rows."""


def step_axis(events: Events) -> tuple[Floats, list[tuple[float, float]]]:
    """Every row's place among all steps of the run, and each task's beginning and end there."""
    x = np.zeros(len(events))
    bands: list[tuple[float, float]] = []
    start = 0.0
    for rows in _tasks(events):
        length = float(events.step[rows].max() + 1)
        x[rows] = start + events.step[rows]
        bands.append((start, start + length))
        start += length
    return x, bands


def task_axis(events: Events, *, finished: bool) -> Floats:
    """Every row's place in units of tasks: t + share of the task's steps done.

    So that runs with different numbers of steps lie over each other. A last task that is
    still going is taken to be at least as long as the one before.
    """
    x = np.zeros(len(events))
    before = 0.0
    for rows in _tasks(events):
        length = float(events.step[rows].max() + 1)
        going = not finished and rows.stop == len(events)
        x[rows] = events.task[rows] + events.step[rows] / (max(length, before) if going else length)
        before = length
    return x


def curve(events: Events, column: str, x: Floats) -> tuple[Points, Points]:
    """The course of a column over `x`, thinned, and the values behind it.

    Where a task has too few rows to be smoothed, its course is the logged values.
    """
    y = np.where(np.isfinite(events.columns[column]), events.columns[column], np.nan)
    smooth, raw = [np.empty((0, 2))], [np.empty((0, 2))]
    tasks = list(_tasks(events))
    buckets = max(8, BUCKETS // max(1, len(tasks)))
    for rows in tasks:
        # A term that is zero all through a task was off in it, and has no course to show.
        if column in TERMS and not np.any(np.nan_to_num(y[rows])):
            y[rows] = np.nan
        gap = np.array([[x[rows][-1], np.nan]])
        window = (rows.stop - rows.start) // SMOOTHING
        smooth += [_thin(x[rows], _moving_mean(y[rows], window), buckets), gap]
        if window > 1:
            raw += [_envelope(x[rows], y[rows], buckets), gap]
    return np.concatenate(smooth), np.concatenate(raw)


def _tasks(events: Events) -> Iterator[slice]:
    """The rows of every task; rows are in order of task and step."""
    starts = np.flatnonzero(np.diff(events.task, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(events)]):
        yield slice(start, stop)


def _moving_mean(y: Floats, window: int) -> Floats:
    """Centred mean of the finite values within `window` rows; NaN stays where y is NaN."""
    if window < 2:
        return y
    half = window // 2
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    mean = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(finite, mean, np.nan)


def _thin(x: Floats, y: Floats, buckets: int) -> Points:
    """At most `buckets` of the points, evenly spread, with the first and the last."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), buckets)).round().astype(int))
    return np.column_stack([x, y])[chosen]


def _envelope(x: Floats, y: Floats, buckets: int) -> Points:
    """Least and largest of every bucket, so that thinning hides no spike."""
    ends = []
    for rows in np.array_split(np.arange(len(x)), min(len(x), buckets)):
        finite = rows[np.isfinite(y[rows])]
        both = {finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]} if len(finite) else ()
        ends += sorted(both) or [rows[0]]
    return np.column_stack([x, y])[ends]
