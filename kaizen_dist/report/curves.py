"""Turns a column of logged numbers into curves that can be drawn: smoothed, thinned, in steps.

In come the logged steps, out go points (x, y) with gaps where a value is missing or not
finite. Every task is treated on its own, so that nothing is smoothed across the jump
between two tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.learner.terms import TERMS
from kaizen_dist.runs.reader import Events

Floats: TypeAlias = NDArray[np.float64]
Points: TypeAlias = list[tuple[float, float]]
"""Drawn as one line; a NaN breaks it."""

BUCKETS = 240
"""A curve is thinned to so many buckets: more than a screen's worth adds bytes, not detail."""
SMOOTHING = 20
"""A task's curve is a moving mean over this part of its rows."""


@dataclass(frozen=True)
class Curve:
    """One quantity of one run: its course, and the logged values it was smoothed from."""

    smooth: list[Points]
    raw: list[Points]

    def range(self) -> tuple[float, float] | None:
        """Least and largest y to be shown; single raw outliers are left out of it."""
        smooth = [y for task in self.smooth for _, y in task if np.isfinite(y)]
        raw = [y for task in self.raw for _, y in task if np.isfinite(y)]
        if not smooth:
            return None
        low, high = (np.percentile(raw, [1, 99])) if raw else (smooth[0], smooth[0])
        return min(float(low), *smooth), max(float(high), *smooth)


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


def curve(events: Events, column: str, x: Floats, *, raw: bool = True) -> Curve:
    """The course of a column over `x`, thinned; with `raw`, the values behind it too.

    Where a task has too few rows to be smoothed, its course is the logged values.
    """
    y = events.columns[column]
    y = np.where(np.isfinite(y), y, np.nan)
    if column in TERMS:
        # A term that is zero all through a task was off in it, and has no course to show.
        for rows in _tasks(events):
            if not np.any(np.nan_to_num(y[rows])):
                y[rows] = np.nan
    drawn = Curve([], [])
    tasks = list(_tasks(events))
    for rows in tasks:
        window = (rows.stop - rows.start) // SMOOTHING
        buckets = max(8, BUCKETS // len(tasks))
        drawn.smooth.append(_thin(x[rows], _moving_mean(y[rows], window), buckets))
        if raw and window > 1:
            drawn.raw.append(_envelope(x[rows], y[rows], buckets))
    return drawn


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
    count = min(len(x), buckets)
    chosen = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int))
    return list(zip(x[chosen].tolist(), y[chosen].tolist(), strict=True))


def _envelope(x: Floats, y: Floats, buckets: int) -> Points:
    """Least and largest of every bucket, so that thinning hides no spike."""
    points: Points = []
    for rows in np.array_split(np.arange(len(x)), min(len(x), buckets)):
        finite = rows[np.isfinite(y[rows])]
        if len(finite) == 0:
            points.append((float(x[rows[0]]), float("nan")))
            continue
        ends = {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
        points += [(float(x[i]), float(y[i])) for i in sorted(ends)]
    return points
