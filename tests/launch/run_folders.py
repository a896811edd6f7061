"""Folders of runs made by hand: of 100 and 60 images, 20 a step, 10 epochs a task."""

import json
import os
from pathlib import Path

from kaizen_dist.launch.attempts import Began, Ended, Ledger, Row, Submitted

CONFIG = """\
train: {epochs: 10, batch_size: 20, max_steps: null, lanes: null, lr: 1e-5}
replay: {batch_size: 10, fraction: 0.01}
"""
NOW = 1_800_000_000.0


def event(task: int, step: int, speed: float | None = 40.0, ago: float = 10.0) -> str:
    row = {"task": task, "epoch": step // 5, "step": step, "loss": 1.0}
    return json.dumps(row | {"images_per_second": speed, "time": NOW - ago})


def make_run(
    folder: Path,
    events: list[str] = (),
    finished: bool = False,
    checkpoints: list[tuple[str, float]] = (),
    rows: list[Row] = (),
    config: str = CONFIG,
) -> Path:
    """A run's folder; `checkpoints` are (name, seconds ago)."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    results = {"stream": {"train_counts": [100, 60]}, "finished": finished}
    (folder / "results.json").write_text(json.dumps(results))
    if events:
        (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in events))
    for name, ago in checkpoints:
        (folder / "checkpoints" / name).mkdir(parents=True)
        os.utime(folder / "checkpoints" / name, (NOW - ago, NOW - ago))
    for row in rows:
        Ledger(folder / "slurm").append(row)
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
