"""Cost of a checkpoint within a task: stall of training, size on disk, time to restore.

A learner of the second task of a configuration (teacher, momentum network, optimizer) takes steps
on random views; every few steps it is saved as a run would save it, while steps in between give
the time of a step without a save. Interleaved in one run, medians of repeats.

Columns of the one row: `step_seconds` (nothing is being saved), `stall_seconds` (a save blocks
training for) and `stall_spread`, `slower_steps_seconds` (by which all steps during a save are
slower, together), `share_at_one_a_minute` (of training time, stall and slower steps),
`save_seconds` (from the call until the checkpoint has its name), `tensor_bytes`, `disk_bytes`,
`restore_seconds` (verify the manifest and read all tensors).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.result import BenchResult, Row, Sheet
from kaizen_dist.bench.steps import TOTAL_STEPS, engine_of, random_batch
from kaizen_dist.common.device_clock import synchronise
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Engine
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.engine.checkpoint.writer import CheckpointWriter
from kaizen_dist.views.loader import Batch


def bench_checkpoint(
    config: Config, classes: int, repeats: int, context: RankContext, folder: Path | None = None
) -> BenchResult:
    """Measure on all ranks, which write to `folder` (None: the folder of temporary files)."""
    engine = engine_of(config, classes, context)
    engine.begin_task(1, TOTAL_STEPS, TOTAL_STEPS)
    batch = random_batch(config, classes, context)
    for step in range(3):
        engine.step(batch, step)
    with tempfile.TemporaryDirectory(prefix="kaizen-bench-", dir=folder) as own:
        run = Path(context.exchange(own)[0])
        cost = _measure(engine, config, run, batch, repeats, context)
    row = {"name": f"{config.method}, {config.model.backbone}, {context.world_size} rank(s)"} | cost
    settings = {"classes": classes, "repeats": repeats, "ranks": context.world_size}
    lines = [(name.replace("_", " "), _shown(name, value)) for name, value in row.items()]
    sheet = Sheet("a checkpoint within a task", ("", "value"), lines)
    return BenchResult([row], machine(), settings, [sheet])


def _measure(
    engine: Engine, config: Config, run: Path, batch: Batch, repeats: int, context: RankContext
) -> Row:
    def timed(work: Callable[[], object]) -> float:
        begun = time.monotonic()
        work()
        synchronise(context.device)
        return time.monotonic() - begun

    saver = CheckpointWriter(run, config.checkpoint, context)
    plain: list[float] = []
    stalls, slower, saves = [], [], []
    for repeat in range(repeats):
        plain += [timed(lambda: engine.step(batch, 10)) for _ in range(3)]
        begun = time.monotonic()
        name, copy = layout.name_of(1, repeat + 1), partial(engine.snapshot, True)
        stalls.append(timed(partial(saver.save, name, copy, {})))
        during = []
        while _busy(saver, context):
            during.append(timed(lambda: engine.step(batch, 10)))
        saver.wait()
        saves.append(time.monotonic() - begun)
        slower.append(sum(during) - len(during) * statistics.median(plain))
    path = layout.found(run)[-1]
    part = context.rank, context.world_size
    stall, extra = statistics.median(stalls), max(0.0, statistics.median(slower))
    return {
        "step_seconds": statistics.median(plain),
        "stall_seconds": stall,
        "stall_spread": (min(stalls), max(stalls)),
        "slower_steps_seconds": extra,
        "share_at_one_a_minute": (stall + extra) / 60,
        "save_seconds": statistics.median(saves),
        "tensor_bytes": _tensor_bytes(engine),
        "disk_bytes": sum(file.stat().st_size for file in path.iterdir()),
        "restore_seconds": timed(
            lambda: (layout.faults(path, *part), engine.restore(path, within_task=True))
        ),
    }


def _busy(saver: CheckpointWriter, context: RankContext) -> bool:
    """Whether any rank still writes: all of them must take the same number of steps."""
    return bool(context.sum(torch.tensor(float(saver.busy), device=context.device)))


def _tensor_bytes(engine: Engine) -> int:
    """Of the learner and of its optimizer, each tensor once."""
    states = engine.optimizer.state.values()
    tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in (*tensors, *(tensor for _, tensor in engine.full_state())))


def _shown(name: str, value: Any) -> str:
    if name.startswith("share"):
        return f"{value:.2%}"
    if name.endswith("seconds"):
        return f"{value:.3f} s"
    if name.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    return str(value) if isinstance(value, str) else " to ".join(f"{v:.3f}" for v in value)
