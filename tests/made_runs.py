"""Run folders as the trainer writes them, made up but plausible, to read and to draw."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kaizen_dist.config import Config
from kaizen_dist.evaluation import metrics

MakeRun = Callable[..., Path]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, tasks=5, done=3, ...)` writes tmp_path/name and returns it."""

    def make(name: str = "kaizen", **settings: Any) -> Path:
        return write_run(tmp_path / name, **settings)

    return make


def write_run(
    folder: Path,
    *,
    tasks: int = 5,
    done: int | None = None,
    keeps: float = 0.85,
    rows_per_task: int = 60,
    seed: int = 0,
    classes: list[str] | None = None,
    config: dict[str, Any] | None = None,
    fingerprint: str = "sha256:0f3a",
    **changes: Any,
) -> Path:
    """A run that after each task still knows `keeps` of what it knew of each earlier one."""
    folder.mkdir(parents=True)
    done = tasks if done is None else done
    draw = random.Random(seed)
    chosen = Config.model_validate(
        {"train": {"epochs": 20, "seed": seed}, "optim": {"warmup_epochs": 2}} | (config or {})
    )
    (folder / "config.yaml").write_text(chosen.to_yaml())
    results = make_results(draw, chosen, tasks, done, keeps, classes, fingerprint)
    (folder / "results.json").write_text(json.dumps(results | changes))
    rows = make_events(draw, chosen, tasks if done == tasks else done + 1, rows_per_task)
    if done < tasks:
        rows = rows[: done * rows_per_task + rows_per_task // 3]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_matrix(draw: random.Random, tasks: int, done: int, keeps: float, first: float) -> list:
    best = [first + draw.uniform(-0.06, 0.06) for _ in range(tasks)]
    return [
        [
            round(min(1.0, max(0.0, best[i] * keeps ** (t - i) + draw.uniform(-0.02, 0.02))), 4)
            if i <= t
            else None
            for i in range(tasks)
        ]
        for t in range(done)
    ]


def make_results(
    draw: random.Random,
    config: Config,
    tasks: int,
    done: int,
    keeps: float,
    classes: list[str] | None,
    fingerprint: str,
) -> dict[str, Any]:
    names = classes or (DIGITS if tasks <= 5 else [f"class-{i}" for i in range(5 * tasks)])
    per_task = max(1, len(names) // tasks)
    split = [names[i * per_task : (i + 1) * per_task] for i in range(tasks)]
    accuracy = make_matrix(draw, tasks, done, keeps, 0.9)
    knn = make_matrix(draw, tasks, done, (1 + keeps) / 2, 0.88)
    before = [None, *[round(draw.uniform(0.7, 0.9), 4) for _ in range(tasks - 1)]]
    untrained = [None, *[round(draw.uniform(0.5, 0.7), 4) for _ in range(tasks - 1)]]
    before[done + 1 :] = [None] * len(before[done + 1 :])
    sizes = [60 + 10 * (i % 3) for i in range(tasks)]
    return {
        "accuracy": accuracy,
        "knn": knn,
        "ncm": None,
        "oracle": None,
        "calibration": [0.1] * done,
        "final_accuracy": metrics.final_accuracy(accuracy),
        "final_accuracy_weighted": metrics.weighted_final_accuracy(accuracy, sizes),
        "continual_accuracy": metrics.continual_accuracy(accuracy),
        "forgetting": metrics.forgetting(accuracy),
        "forward_transfer": metrics.forward_transfer(before, untrained),
        "probe_before": before,
        "probe_random": untrained,
        "method": config.method,
        "distill": {
            "features": config.distill.features,
            "classifier": config.distill.classifier,
        },
        "classifier": config.classifier.enabled,
        "replay_fraction": config.replay.fraction,
        "replay_order": 2,
        "world_size": 2,
        "views_backend": "torch",
        "images_per_second": 412.7,
        "wall_seconds": 341.2,
        "teacher_share": 0.2,
        "stream": {
            "path": "/data/streams/digits-5",
            "fingerprint": fingerprint,
            "scenario": "class",
            "source": "digits",
            "tasks": tasks,
            "classes": len(names),
            "train_counts": [280 + 5 * i for i in range(tasks)],
            "val_counts": sizes,
            "upright": True,
        },
        "seed": config.train.seed,
        "config_sha256": config.sha256,
        "state_sha256": "9b" * 32,
        "finished": done == tasks,
        "late_labels": [],
        "started_from": None,
        "task_classes": split,
    }


def make_events(
    draw: random.Random, config: Config, tasks: int, rows_per_task: int
) -> list[dict[str, Any]]:
    rows = []
    for task in range(tasks):
        for i in range(rows_per_task):
            share = i / rows_per_task
            retain = task > 0
            ssl = 1.2 + 2.4 * math.exp(-4 * share) + draw.gauss(0, 0.12)
            terms = {
                "ssl": ssl,
                "classifier": (0.3 + 2 * math.exp(-5 * share) + draw.gauss(0, 0.05))
                if config.classifier.enabled
                else None,
                "kd_features": 0.4 + 0.5 * math.exp(-3 * share) + draw.gauss(0, 0.03)
                if retain and config.distill.features
                else 0.0,
                "kd_classifier": 1.1 + 0.8 * math.exp(-3 * share) + draw.gauss(0, 0.06)
                if retain and config.distill.classifier
                else 0.0,
                "supervised": 0.0,
                "kd_supervised": 0.0,
            }
            rows.append(
                {
                    "task": task,
                    "epoch": int(20 * share),
                    "step": 10 * i,
                    "loss": sum(v or 0.0 for v in terms.values()),
                    **terms,
                    "lr": 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, share * 10 + 0.05),
                    "images_per_second": draw.gauss(410, 14),
                    "data_wait": abs(draw.gauss(0.03, 0.01)),
                    "time": 1_700_000_000.0 + 0.6 * len(rows),
                }
            )
    return rows
