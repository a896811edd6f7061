"""What a checkpoint costs: the stall of training, the size on disk, the time to come back.

In comes a configuration; a learner of its second task (teacher, momentum network, optimizer)
takes steps on random views on this machine, and every few steps is saved as a run would,
while plain steps in between give the time of a step without a save. Interleaved in one run,
medians of repeats.
"""

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from kaizen_dist.bench.batches import random_batch
from kaizen_dist.bench.machine import machine
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import Engine
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.engine.checkpoint.writer import CheckpointWriter
from kaizen_dist.learner.learner import Learner
from kaizen_dist.views.loader import Batch

_STEPS = 1_000_000  # far from the end of the schedule


@dataclass(frozen=True)
class CheckpointCost:
    """Medians over the repeats, with the least and the largest where a spread is meant."""

    step_seconds: float
    """Of a step while nothing is saved."""
    stall_seconds: float
    stall_spread: tuple[float, float]
    """What a save keeps the training waiting."""
    slower_steps_seconds: float
    """What the steps beside which a save is written take longer, all together."""
    share_at_one_a_minute: float
    """Of the training's time, stall and slower steps together."""
    save_seconds: float
    """From the call to the checkpoint's name."""
    tensor_bytes: int
    disk_bytes: int
    restore_seconds: float
    """To verify the manifest and read all tensors."""


@dataclass(frozen=True)
class CheckpointBench:
    rows: list[dict[str, Any]]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine": {...}}."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title="a checkpoint within a task", show_header=False)
        table.add_column("what")
        table.add_column("value", justify="right")
        for name, value in self.rows[0].items():
            table.add_row(name.replace("_", " "), _shown(name, value))
        return table


def _shown(name: str, value: Any) -> str:
    if name.startswith("share"):
        return f"{value:.2%}"
    if name.endswith("seconds"):
        return f"{value:.3f} s"
    if name.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    return str(value) if not isinstance(value, tuple) else " to ".join(f"{v:.3f}" for v in value)


def bench_checkpoint(
    config: Config, classes: int, repeats: int, context: RankContext, folder: Path | None = None
) -> CheckpointBench:
    """Measure on the ranks there are, which write to `folder` (None: that of temporary files)."""
    engine = engine_class(config.parallel.engine)(
        config, lambda: Learner(config, classes, context), context
    )
    engine.begin_task(1, _STEPS, _STEPS)
    batch = random_batch(config, classes, context)
    for step in range(3):
        engine.step(batch, step)
    with tempfile.TemporaryDirectory(prefix="kaizen-bench-", dir=folder) as own:
        run = Path(context.exchange(own)[0])
        cost = _measure(engine, config, run, batch, repeats, context)
    row = {"name": f"{config.method}, {config.model.backbone}, {context.world_size} rank(s)"}
    return CheckpointBench([row | asdict(cost)], machine())


def _measure(
    engine: Engine, config: Config, run: Path, batch: Batch, repeats: int, context: RankContext
) -> CheckpointCost:
    saver = CheckpointWriter(run, config.checkpoint, context)
    plain: list[float] = []
    stalls, slower, saves = [], [], []
    for repeat in range(repeats):
        plain += [_timed(lambda: engine.step(batch, 10)) for _ in range(3)]
        begun = time.monotonic()
        name = layout.name_of(1, repeat + 1)
        stalls.append(_timed(lambda name=name: saver.save(name, lambda: engine.snapshot(True), {})))
        beside = []
        while _busy(saver, context):
            beside.append(_timed(lambda: engine.step(batch, 10)))
        saver.wait()
        saves.append(time.monotonic() - begun)
        slower.append(sum(beside) - len(beside) * statistics.median(plain))
    path = layout.found(run)[-1]
    on_disk = sum(f.stat().st_size for f in path.iterdir())
    share = context.rank, context.world_size
    restore = _timed(lambda: (layout.faults(path, *share), engine.restore(path, within_task=True)))
    stall, extra = statistics.median(stalls), max(0.0, statistics.median(slower))
    return CheckpointCost(
        step_seconds=statistics.median(plain),
        stall_seconds=stall,
        stall_spread=(min(stalls), max(stalls)),
        slower_steps_seconds=extra,
        share_at_one_a_minute=(stall + extra) / 60,
        save_seconds=statistics.median(saves),
        tensor_bytes=_tensor_bytes(engine),
        disk_bytes=on_disk,
        restore_seconds=restore,
    )


def _busy(saver: CheckpointWriter, context: RankContext) -> bool:
    """Whether any rank still writes: all of them must take the same number of steps."""
    return bool(context.sum(torch.tensor(float(saver.busy), device=context.device)))


def _tensor_bytes(engine: Engine) -> int:
    """Of the learner and of its optimizer, each tensor once."""
    learner = sum(tensor.nbytes for _, tensor in engine.full_state())
    states = engine.optimizer.state.values()
    return learner + sum(t.nbytes for s in states for t in s.values() if isinstance(t, Tensor))


def _timed(work: Any) -> float:
    begun = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - begun
