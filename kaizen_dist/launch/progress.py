"""How far a run has come, from its files alone, read fast: a hundred of them in a second or two.

In comes a run's folder, out comes its `Standing`. Of events.jsonl only the end is read, and
nothing here imports torch. What is missing, or a last line half written, is None: a run that has
just begun, or is being written to, is no error. A file that is damaged is said, and never raises:
it may be one of many runs'.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.common.files import open_to_read, read_json, read_text
from kaizen_dist.common.run_layout import CONFIG, EVENTS, RESULTS
from kaizen_dist.config.parsing import FILE_LIMIT, parse_yaml
from kaizen_dist.engine.checkpoint import layout as checkpoint
from kaizen_dist.launch.attempts import Count
from kaizen_dist.stream.order import Order

_TAIL_BYTES = 16 << 10
_ROWS = 10
"""The speed is the median of so many last rows."""
_MOST = 2**53
"""No count in these files is as large."""
_MOST_TASKS = 100_000
_SAID = 300
"""Characters about a file that is damaged."""
_FOREVER = 1e12
"""Seconds that are no answer any more."""
T = TypeVar("T")


class Row(BaseModel):
    """What is wanted of a row of events.jsonl."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    task: Count
    step: Count
    time: float = Field(ge=0, lt=1e12)
    epoch: Count | None = None
    images_per_second: float | None = Field(None, ge=0, lt=1e12)


@dataclass(frozen=True)
class Standing:
    """Where a run stands; `task` and `step` are those done, counted from 0."""

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
    """Which of its files cannot be read, and why; of what they would tell the rest is None."""


def standing(run: Path, now: float) -> Standing:
    """Where the run in a folder stands at `now` (seconds since 1970)."""
    damage: list[str] = []
    config = _told(run / CONFIG, _config, damage) or {}
    results = _told(run / RESULTS, _results, damage) or {}
    rows = _told(run / EVENTS, tail, damage) or []
    counts = _told(run / RESULTS, lambda _: _counts(results), damage) or []
    plan = _told(run / CONFIG, lambda _: steps_of_tasks(config, counts), damage) or []
    newest, saved = _newest(run)
    place = _position(rows, newest)
    last = rows[-1] if rows else None
    speed = _median([row.images_per_second for row in rows[-_ROWS:]])
    if place is not None and plan and place[0] >= len(plan):
        place = len(plan) - 1, plan[-1]
    finished = results.get("finished") is True
    return Standing(
        task=None if place is None else place[0],
        tasks=len(plan) or None,
        epoch=last.epoch if last and place is not None and last.task == place[0] else None,
        step=None if place is None else place[1],
        steps=plan[place[0]] if plan and place is not None else None,
        images_per_second=speed,
        eta_seconds=None if finished or not plan else eta(plan, place, _batch(config), speed),
        checkpoint=None if newest is None else newest.name,
        checkpoint_age=None if saved is None else now - saved,
        silence=now - last.time if last else None,
        interval=_median([b.time - a.time for a, b in pairwise(rows[-_ROWS:])]),
        finished=finished,
        damage="; ".join(damage),
    )


def eta(
    plan: Sequence[int], place: tuple[int, int] | None, batch: int, speed: float | None
) -> float | None:
    """Seconds for all steps that are left, at `speed` images a second; None if not known."""
    if place is None or not plan or not speed:
        return None
    left = plan[place[0]] - place[1] + sum(plan[place[0] + 1 :])
    seconds = max(0, left) * batch / speed
    return seconds if seconds < _FOREVER else None


def steps_of_tasks(config: Mapping[str, Any], counts: Sequence[int]) -> list[int]:
    """Steps of every task of so many images, as the trainer counts them; [] if not known.

    Raises:
        ValueError: naming a key whose value is none.
    """
    try:
        batch, epochs = _batch(config), _count(config, "train", "epochs")
        lanes = _count_or_none(config, "train", "lanes")
        lanes = lanes or gcd(batch, _count(config, "replay", "batch_size"))
        most = _count_or_none(config, "train", "max_steps")
        steps = [epochs * Order(0, 0, count, batch, lanes).steps_per_epoch for count in counts]
    except (KeyError, UsageError):
        return []
    return steps if most is None else [min(most, count) for count in steps]


def tail(path: Path) -> list[Row]:
    """The last rows of events.jsonl, oldest first.

    Raises:
        OSError: if it cannot be read.
        ValueError: if a line is none of its rows, other than a last one half written.
    """
    with open_to_read(path) as file:
        start = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
        file.seek(start)
        # The first may be cut, by this very beginning, and the last by its writer.
        lines = file.read(_TAIL_BYTES).split(b"\n")[1 if start else 0 : -1]
    if start and not lines:
        raise ValueError("its end is no row")
    rows = []
    for number, line in enumerate(lines, start=1 - len(lines)):
        try:
            rows.append(Row.model_validate_json(line, strict=True))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            place = f"{-number} lines before its last" if number else "its last line"
            raise ValueError(f"{place} is no row: {where} {problem['msg']}") from None
    return rows


def _position(rows: Sequence[Row], newest: Path | None) -> tuple[int, int] | None:
    """(task, steps of it that are done), by the last row or the newest checkpoint."""
    known = [] if newest is None else [checkpoint.position(newest)]
    known += [(row.task, row.step + 1) for row in rows[-1:]]
    return max(known, default=None)


def _newest(run: Path) -> tuple[Path | None, float | None]:
    """The newest checkpoint, and when it was written; a saver may just be removing it."""
    try:
        newest = checkpoint.found(run)[-1]
        return newest, newest.stat().st_mtime
    except (OSError, IndexError):
        return None, None


def _told(path: Path, read: Callable[[Path], T], damage: list[str]) -> T | None:
    """What `read` makes of a file, None where there is none; what is wrong goes to `damage`."""
    try:
        return read(path) if os.path.lexists(path) else None
    except KaizenError as error:
        said = str(error)
    except OSError as error:
        said = f"{path.name}: {error.strerror or error}"
    except ValueError as error:
        said = f"{path.name}: {error}"
    damage.append(" ".join(said.split())[:_SAID])
    return None


def _config(path: Path) -> dict[str, Any]:
    return _mapping(parse_yaml(read_text(path, FILE_LIMIT), path.name))


def _results(path: Path) -> dict[str, Any]:
    values = _mapping(read_json(path))
    if not isinstance(values.get("finished", False), bool):
        raise ValueError("finished is neither true nor false")
    return values


def _counts(results: Mapping[str, Any]) -> list[int]:
    """Training images of every task; [] if there is no word of it."""
    counts = _mapping(results.get("stream", {}), "stream").get("train_counts", [])
    if not isinstance(counts, list) or len(counts) > _MOST_TASKS or not all(map(_is_count, counts)):
        raise ValueError("stream.train_counts is no list of numbers of images")
    return counts


def _mapping(value: Any, name: str = "it") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no mapping of keys")
    return value


def _batch(config: Mapping[str, Any]) -> int:
    return _count(config, "train", "batch_size")


def _count(config: Mapping[str, Any], section: str, key: str) -> int:
    """A number from 1 on; KeyError where there is none."""
    value = _mapping(config[section], section)[key]
    if not _is_count(value) or value < 1:
        raise ValueError(f"{section}.{key} is no number from 1 on")
    return int(value)


def _count_or_none(config: Mapping[str, Any], section: str, key: str) -> int | None:
    return None if config[section][key] is None else _count(config, section, key)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
