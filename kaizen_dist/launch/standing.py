"""How far a run has come, from its files alone, read fast: hundreds of them a second or two.

In comes a run's folder, out comes its `Standing`. Of events.jsonl only the end is read, and
nothing here imports torch. What is missing or half written is None: a run that has just begun,
or is being written to, is no error.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import yaml

from kaizen_dist.engine import checkpoint
from kaizen_dist.errors import UsageError
from kaizen_dist.stream.order import Order

_TAIL_BYTES = 16 << 10
_ROWS = 10
"""The speed is the median of so many last rows."""


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


def standing(run: Path, now: float) -> Standing:
    """Where the run in a folder stands at `now` (seconds since 1970)."""
    config, results = _yaml(run / "config.yaml"), _json(run / "results.json")
    rows = tail(run / "events.jsonl")
    plan = steps_of_tasks(config, _counts(results))
    newest = checkpoint.found(run)[-1:]
    place = _position(rows, newest)
    finished = results.get("finished") is True
    last = rows[-1] if rows else {}
    speed = _median([row["images_per_second"] for row in rows[-_ROWS:]])
    steps = None
    if place is not None and plan:
        if place[0] >= len(plan):
            place = len(plan) - 1, plan[-1]
        steps = plan[place[0]]
    batch = _part(config, "train").get("batch_size", 0)
    return Standing(
        task=None if place is None else place[0],
        tasks=len(plan) or None,
        epoch=last.get("epoch") if place is not None and last.get("task") == place[0] else None,
        step=None if place is None else place[1],
        steps=steps,
        images_per_second=speed,
        eta_seconds=None if finished else eta(plan, place, batch, speed),
        checkpoint=newest[0].name if newest else None,
        checkpoint_age=now - newest[0].stat().st_mtime if newest else None,
        silence=now - last["time"] if last else None,
        interval=_median([b["time"] - a["time"] for a, b in pairwise(rows[-_ROWS:])]),
        finished=finished,
    )


def eta(
    plan: Sequence[int], place: tuple[int, int] | None, batch: int, speed: float | None
) -> float | None:
    """Seconds for all steps that are left, at `speed` images a second; None if not known."""
    if place is None or not plan or not speed:
        return None
    left = plan[place[0]] - place[1] + sum(plan[place[0] + 1 :])
    return max(0, left) * batch / speed


def steps_of_tasks(config: Mapping[str, Any], counts: Sequence[int]) -> list[int]:
    """Steps of every task of so many images, as the trainer counts them; [] if not known."""
    train, replay = _part(config, "train"), _part(config, "replay")
    try:
        lanes = train["lanes"] or gcd(train["batch_size"], replay["batch_size"])
        sizes = (Order(0, 0, count, train["batch_size"], lanes) for count in counts)
        steps = [train["epochs"] * size.steps_per_epoch for size in sizes]
        most = train["max_steps"]
    except (KeyError, TypeError, UsageError):
        return []
    return steps if most is None else [min(most, count) for count in steps]


def tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of events.jsonl, oldest first; none where there is no such file yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            # What a reader below takes for granted; the first line may be cut, and the last.
            if all(isinstance(row[k], int | float) for k in ("task", "step", "time")):
                rows.append(row | {"images_per_second": row.get("images_per_second")})
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _position(rows: Sequence[Mapping[str, Any]], newest: Sequence[Path]) -> tuple[int, int] | None:
    """(task, steps of it that are done), by the last row or the newest checkpoint."""
    known = [checkpoint.position(path) for path in newest]
    known += [(row["task"], row["step"] + 1) for row in rows[-1:]]
    return max(known, default=None)


def _counts(results: Mapping[str, Any]) -> list[int]:
    counts = _part(results, "stream").get("train_counts", [])
    return counts if isinstance(counts, list) else []


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _yaml(path: Path) -> dict[str, Any]:
    # The C loader where there is one: it is a safe one too, and much faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
