"""Progress of a run from its files alone, read fast: a hundred runs in a second or two.

Only the end of events.jsonl is read, and nothing here imports torch. A missing file, or a last line
half written, is normal for a run that has just begun or is being written to. A damaged file is
reported in the result and never raises: it may be one of many runs'.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.inventory import reasons
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.engine.checkpoint import layout as checkpoint
from kaizen_dist.runs.reader import EventRow, last_rows, read_config, read_results
from kaizen_dist.stream.order import Order

_ROWS = 10
"""Speed and interval are medians over this many last rows."""
_SHOWN = 400
"""Characters about a damaged file."""
_LONGEST_ETA = 1e12
"""Seconds; beyond them it is unknown."""
T = TypeVar("T")
_Number = Annotated[int, Field(ge=1, lt=2**53)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    batch_size: _Number | None = None
    epochs: _Number | None = None
    lanes: _Number | None = None
    max_steps: _Number | None = None


class TrainingLength(BaseModel):
    """The keys of a configuration that decide how many steps a task has."""

    model_config = ConfigDict(extra="ignore")

    train: _Section = _Section()
    replay: _Section = _Section()

    def steps_of_tasks(self, counts: Sequence[int]) -> list[int]:
        """Steps of every task of so many images, as the trainer counts them; [] if unknown."""
        train, replay = self.train, self.replay
        if not (train.batch_size and train.epochs and (train.lanes or replay.batch_size)):
            return []
        lanes = train.lanes or gcd(train.batch_size, replay.batch_size or 0)
        try:
            orders = [Order(0, 0, count, train.batch_size, lanes) for count in counts]
        except UsageError:
            return []
        steps = [train.epochs * order.steps_per_epoch for order in orders]
        return [min(train.max_steps or count, count) for count in steps]


@dataclass(frozen=True)
class Progress:
    """How far a run has come; `task`, `epoch` and `step` count from 0."""

    task: int | None = None
    tasks: int | None = None
    epoch: int | None = None
    step: int | None = None
    """Steps of the task that are done."""
    steps: int | None = None
    """Of the task."""
    images_per_second: float | None = None
    eta_seconds: float | None = None
    """For the steps left in all tasks, at that speed; evaluations come on top."""
    checkpoint: str | None = None
    checkpoint_age: float | None = None
    """Seconds."""
    silence: float | None = None
    """Seconds since the last row of events.jsonl."""
    interval: float | None = None
    """Seconds between such rows."""
    finished: bool = False
    damage: str = ""
    """Which of its files cannot be read, and why; what depends on them is None."""


def progress(run: Path, now: float) -> Progress:
    """Progress of the run in a folder at `now` (seconds since 1970)."""
    damage: list[str] = []
    length = readable(_length, run, damage) or TrainingLength()
    results = readable(read_results, run, damage)
    rows = (readable(last_rows, run, damage) or [])[-_ROWS:]
    plan = length.steps_of_tasks(results.stream.train_counts) if results else []
    newest, saved = _newest_checkpoint(run)
    place, last = _position(rows, newest), rows[-1] if rows else None
    if place is not None and plan and place[0] >= len(plan):
        place = len(plan) - 1, plan[-1]
    speed = _median([row.images_per_second for row in rows])
    finished = results is not None and results.finished
    return Progress(
        task=None if place is None else place[0],
        tasks=len(plan) or None,
        epoch=last.epoch if last and place is not None and last.task == place[0] else None,
        step=None if place is None else place[1],
        steps=plan[place[0]] if plan and place is not None else None,
        images_per_second=speed,
        eta_seconds=None if finished else eta(plan, place, length.train.batch_size, speed),
        checkpoint=None if newest is None else newest.name,
        checkpoint_age=None if saved is None else now - saved,
        silence=now - last.time if last else None,
        interval=_median([b.time - a.time for a, b in pairwise(rows)]),
        finished=finished,
        damage="; ".join(damage),
    )


def eta(
    plan: Sequence[int], place: tuple[int, int] | None, batch: int | None, speed: float | None
) -> float | None:
    """Seconds for all steps that are left, at `speed` images a second; None if unknown."""
    if place is None or not plan or not batch or not speed:
        return None
    left = plan[place[0]] - place[1] + sum(plan[place[0] + 1 :])
    seconds = max(0, left) * batch / speed
    return seconds if seconds < _LONGEST_ETA else None


def _length(run: Path) -> TrainingLength | None:
    """Raises DataError."""
    if not os.path.lexists(run / CONFIG):
        return None
    try:
        return TrainingLength.model_validate(read_config(run)[0])
    except ValidationError as error:
        raise DataError(f"{run / CONFIG}: {reasons(error)}") from None


def _position(rows: Sequence[EventRow], newest: Path | None) -> tuple[int, int] | None:
    """(task, steps of it that are done), by the last row or the newest checkpoint."""
    known = [] if newest is None else [checkpoint.position(newest)]
    known += [(row.task, row.step + 1) for row in rows[-1:]]
    return max(known, default=None)


def _newest_checkpoint(run: Path) -> tuple[Path | None, float | None]:
    """And when it was written; it may just be being removed."""
    try:
        newest = checkpoint.found(run)[-1]
        return newest, newest.stat().st_mtime
    except (OSError, IndexError):
        return None, None


def readable(read: Callable[[Path], T], run: Path, damage: list[str]) -> T | None:
    """The result of `read` for a run; None after a DataError, whose message goes to `damage`."""
    try:
        return read(run)
    except DataError as error:
        text = str(error).replace(f"{run}{os.sep}", "")
        damage.append(" ".join(text.split())[:_SHOWN])
        return None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
