"""The numbers and settings of a run as rows of text, ready to be laid out.

In comes a run, out go the four metrics, the tasks, the settings and the machine. Nothing
here knows how a page looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaizen_dist.common import formatting
from kaizen_dist.common.formatting import DASH, SPACE, duration, percent, plural, points
from kaizen_dist.config import flatten
from kaizen_dist.evaluation import metrics
from kaizen_dist.runs.reader import Run
from kaizen_dist.runs.results import Results

METHODS = {
    "byol": "BYOL",
    "simclr": "SimCLR",
    "mocov2plus": "MoCoV2+",
    "mocov3": "MoCo v3",
    "vicreg": "VICReg",
    "barlow_twins": "Barlow Twins",
    "simsiam": "SimSiam",
}
"""How the field spells what the configuration writes small; other names stay as they are."""

KEY_SETTINGS = (
    "model.backbone",
    "train.epochs",
    "train.batch_size",
    "train.max_steps",
    "replay.fraction",
    "replay.batch_size",
    "replay.select",
    "distill.features",
    "distill.classifier",
    "classifier.enabled",
    "optim.name",
    "optim.lr",
    "views.size",
    "views.backend",
    "parallel.engine",
    "train.seed",
)
"""What a reader wants to know of a run first."""

MEANINGS = (
    ("FA", "Final accuracy", "%", "Mean over all tasks, measured after the last one."),
    (
        "CA",
        "Continual accuracy",
        "%",
        "Mean over the tasks seen so far, averaged over the whole stream.",
    ),
    (
        "F",
        "Forgetting",
        "points",
        "Lost on earlier tasks since each was known best. Lower is better.",
    ),
    (
        "FT",
        "Forward transfer",
        "points",
        "How far earlier tasks lift a linear probe on the next one above random features.",
    ),
)
"""The four metrics: abbreviation, name, unit and what they say."""


@dataclass(frozen=True)
class Metric:
    """One of the four numbers, large, with a line that explains it."""

    short: str
    name: str
    value: str
    unit: str
    meaning: str
    extra: str = ""


@dataclass(frozen=True)
class TaskRow:
    """What a task was and how well it is known."""

    number: int
    classes: list[str]
    train: str
    val: str
    learnt: str
    best: str
    now: str
    knn: str


def method(results: Results) -> str:
    """The method as the field spells it."""
    return METHODS.get(results.method, results.method)


def source(results: Results) -> str:
    """The source without the path of the machine that prepared it."""
    kind, _, rest = results.stream.source.partition(":")
    last = rest.rstrip("/").rpartition("/")[2] if kind in {"folder", "domains"} else rest
    return last.partition(":")[0] or kind


def four_metrics(results: Results) -> list[Metric]:
    """FA, CA, F and FT of one run; beside them kNN's where there is no classifier."""
    weighted = results.final_accuracy_weighted
    final = ""
    if weighted is not None and percent(weighted) != percent(results.final_accuracy):
        final = f"{percent(weighted)} weighted by images"
    knn = [metrics.final_accuracy(results.knn), metrics.continual_accuracy(results.knn)]
    lost = metrics.forgetting(results.knn)
    measured = (
        (results.final_accuracy, final, f"By kNN: {percent(knn[0])}"),
        (results.continual_accuracy, "", f"By kNN: {percent(knn[1])}"),
        (results.forgetting, "", f"By kNN: {points(lost)}{SPACE}points"),
        (results.forward_transfer, "", "Not measured"),
    )
    return [
        Metric(short, name, points(value), f"{SPACE}{unit}", meaning, extra)
        if value is not None
        else Metric(
            short,
            name,
            DASH,
            "",
            meaning,
            "Not measured" if results.classifier else instead,
        )
        for (short, name, unit, meaning), (value, extra, instead) in zip(
            MEANINGS, measured, strict=True
        )
    ]


def headline(run: Run) -> list[str]:
    """Stream and run in a few words each."""
    stream, replay = run.results.stream, run.results.replay_fraction
    return [
        plural(stream.tasks, "task"),
        f"{stream.scenario}-incremental",
        plural(stream.classes, "class", "classes"),
        f"{sum(stream.train_counts):,} training images",
        f"{100 * replay:g}{SPACE}% replay" if replay else "no replay",
        f"seed {run.results.seed}",
    ]


def notices(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    for run, name in zip(runs, names, strict=True):
        who = f"“{name}”" if len(runs) > 1 else "This run"
        if not run.results.finished:
            total = run.results.stream.tasks
            said.append(
                f"{who} is not finished: {run.tasks_done} of {plural(total, 'task')} measured."
            )
        if not run.results.classifier:
            said.append(f"{who} trained no classifier; kNN stands in for it.")
    return said


def gap(results: Results) -> str:
    """How the classifier stands to what the same features would allow."""
    ours, knn = results.final_accuracy, metrics.final_accuracy(results.knn)
    if ours is None or knn is None:
        return ""
    named = f"On the same features, nearest neighbours name {percent(knn)} right"
    if abs(knn - ours) < 0.005:
        return f"{named}, as many as the classifier."
    amount = points(abs(knn - ours))
    if knn > ours:
        return (
            f"{named}, {amount} points more than the classifier: so much is still in the "
            "features, and lost on the way to a label."
        )
    return f"{named}, {amount} points fewer than the classifier."


def task_rows(run: Run) -> list[TaskRow]:
    """Every task of the stream, learnt or not."""
    results = run.results
    stream, done = results.stream, run.tasks_done
    matrix = results.accuracy if results.classifier else results.knn

    def at(values: Sequence[Sequence[float | None]], t: int, i: int) -> float | None:
        return values[t][i] if 0 <= t < len(values) and i < len(values[t]) else None

    rows = []
    for i in range(stream.tasks):
        known = [v for t in range(i, done) if (v := at(matrix, t, i)) is not None]
        seen = i < done
        rows.append(
            TaskRow(
                number=i + 1,
                classes=results.task_classes[i] if i < len(results.task_classes) else [],
                train=_count(stream.train_counts, i),
                val=_count(stream.val_counts, i),
                learnt=percent(at(matrix, i, i)),
                best=percent(max(known, default=None)),
                now=percent(at(matrix, done - 1, i) if seen else None),
                knn=percent(at(results.knn, done - 1, i) if seen else None),
            )
        )
    return rows


def key_settings(run: Run) -> list[tuple[str, str]]:
    """The settings that say most, as far as the configuration has them."""
    flat = flatten(run.config)
    return [(key, setting(flat[key])) for key in KEY_SETTINGS if key in flat]


def machine(run: Run) -> list[tuple[str, str]]:
    """Speed, size and identity of a run."""
    results = run.results
    waits = run.events.columns["data_wait"]
    waits = waits[np.isfinite(waits)]
    return [
        ("Speed", _speed(results)),
        ("World size", plural(results.world_size, "process", "processes")),
        ("Wall time", duration(results.wall_seconds)),
        ("Waiting for data", percent(float(waits.mean()) if len(waits) else None)),
        ("Teacher", _teacher(results)),
        ("Stream", results.stream.path),
        ("Stream fingerprint", results.stream.fingerprint),
        ("Configuration SHA-256", results.config_sha256),
        ("State SHA-256", results.state_sha256 or DASH),
    ]


def setting(value: Any) -> str:
    """A value as YAML would write it on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(setting, value))}]"
    return str(value)


def _count(counts: Sequence[int], task: int) -> str:
    return f"{counts[task]:,}" if task < len(counts) else DASH


def rate(value: float | None) -> str:
    return DASH if value is None else formatting.number(value, 0 if value >= 10 else 1)


def _teacher(results: Results) -> str:
    if results.teacher_share is None:
        return DASH
    return f"{percent(results.teacher_share)} of a step's operations"


def _speed(results: Results) -> str:
    if results.images_per_second is None:
        return DASH
    return f"{rate(results.images_per_second)} images per second"
