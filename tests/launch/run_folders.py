"""Folders of runs made by hand: of 100 and 60 images, 20 a step, 10 epochs a task."""

import json
import os
from pathlib import Path

from kaizen_dist.launch.attempts import AttemptLog, AttemptRow, Began, Ended, Submitted

CONFIG = """\
train: {epochs: 10, batch_size: 20, max_steps: null, lanes: null}
replay: {batch_size: 10, fraction: 0.01}
"""
NOW = 1_800_000_000.0


def event(task: int, step: int, speed: float | None = 40.0, ago: float = 10.0) -> str:
    losses = dict.fromkeys(("loss", "ssl", "classifier", "kd_features", "kd_classifier"), 1.0)
    row = {"task": task, "epoch": step // 5, "step": step} | losses | {"lr": 0.1, "data_wait": 0.0}
    return json.dumps(row | {"images_per_second": speed, "time": NOW - ago})


def results(finished: bool) -> dict:
    matrix = [[0.5, None], [0.5, 0.5]] if finished else []
    return {
        "accuracy": matrix,
        "knn": matrix,
        "method": "byol",
        "distill": {"features": True, "classifier": True},
        "classifier": True,
        "replay_fraction": 0.01,
        "world_size": 1,
        "stream": {
            "path": "/s",
            "fingerprint": "f",
            "scenario": "class",
            "source": "digits",
            "tasks": 2,
            "classes": 2,
            "train_counts": [100, 60],
            "val_counts": [10, 10],
        },
        "task_classes": [["a"], ["b"]],
        "seed": 0,
        "config_sha256": "0",
        "finished": finished,
    }


def make_run(
    folder: Path,
    events: list[str] = (),
    finished: bool = False,
    checkpoints: list[tuple[str, float]] = (),
    rows: list[AttemptRow] = (),
    config: str = CONFIG,
) -> Path:
    """A run's folder; `checkpoints` are (name, seconds ago)."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "results.json").write_text(json.dumps(results(finished)))
    if events:
        (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in events))
    for name, ago in checkpoints:
        (folder / "checkpoints" / name).mkdir(parents=True)
        os.utime(folder / "checkpoints" / name, (NOW - ago, NOW - ago))
    for row in rows:
        AttemptLog(folder).append(row)
    return folder


def submitted(job: str, task: int | None = None, guard: str | None = None) -> Submitted:
    return Submitted(
        job=job, time=NOW, nodes=2, ranks_per_node=1, task=task, exclude=[], guard=guard
    )


def began(job: str, restart: int = 0) -> Began:
    return Began(job=job, time=NOW, restart=restart, nodes=["node1", "node2"], position=None)


def ended(job: str, code: int, reason: str, restart: int = 0) -> Ended:
    return Ended(
        job=job, time=NOW, restart=restart, code=code, reason=reason, position=None, bad_nodes=[]
    )
