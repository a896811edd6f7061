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
from kaizen_dist.evaluation.metrics import Metric
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


@dataclass(frozen=True)
class MetricText:
    """A metric of a run as text; `unit` is empty and `value` a dash where it was not measured."""

    metric: Metric
    value: str
    unit: str
    extra: str


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


def four_metrics(results: Results) -> list[MetricText]:
    """FA, CA, F and FT of one run; beside them kNN's where there is no classifier."""
    knn, weighted = results.knn, results.final_accuracy_weighted
    by_knn = {
        "FA": f"By kNN: {percent(metrics.final_accuracy(knn))}",
        "CA": f"By kNN: {percent(metrics.continual_accuracy(knn))}",
        "F": f"By kNN: {points(metrics.forgetting(knn))}{SPACE}points",
    }
    texts = []
    for metric in metrics.FOUR:
        value, extra = metric.of(results), ""
        if value is None:
            measured = by_knn.get(metric.short, "Not measured")
            extra = "Not measured" if results.classifier else measured
        elif metric.short == "FA" and weighted is not None and percent(weighted) != percent(value):
            extra = f"{percent(weighted)} weighted by images"
        unit = "" if value is None else f"{SPACE}{metric.unit}"
        texts.append(MetricText(metric, points(value), unit, extra))
    return texts


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
