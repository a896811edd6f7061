"""Takes steps of a second task and measures them in two ways: synchronised, and free-running.

Synchronised steps are waited for one by one, which gives their parts. Free-running steps follow
each other as in a run, and the device is waited for after the last of them only: on a GPU the host
queues work ahead, and they take less time.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from kaizen_dist.bench.machine import resident_bytes
from kaizen_dist.bench.result import Row, Spent, speed
from kaizen_dist.bench.step_timer import StepTimer
from kaizen_dist.common.device_clock import synchronise
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import Engine
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses
from kaizen_dist.views.loader import Batch

TOTAL_STEPS = 1_000_000
"""Far from the end of a schedule."""


def engine_of(config: Config, classes: int, context: RankContext) -> Engine:
    """The configured engine with a new learner; no task has begun."""
    engine = engine_class(config.parallel.engine)
    return engine(config, lambda: Learner(config, classes, context), context)


def random_batch(config: Config, classes: int, context: RankContext) -> Batch:
    """A rank's part of a step with replay, on its device; equal at every call.

    The batch of a single rank differs from that of any other world size.
    """
    replayed = config.replay.batch_size if config.replay.fraction > 0 else 0
    count = (config.train.batch_size + replayed) // context.world_size
    size = config.views.size
    generator = torch.Generator().manual_seed(context.rank)
    return Batch(
        views=torch.randn(2, count, 3, size, size, generator=generator).to(context.device),
        labels=torch.randint(classes, (count,), generator=generator).to(context.device),
        ids=np.arange(count),
        task_images=config.train.batch_size // context.world_size,
    )


class Steps:
    """Takes steps by `take(number)`, whose parts a timer follows; all ranks together."""

    def __init__(
        self, take: Callable[[int], Losses], timer: StepTimer, context: RankContext
    ) -> None:
        self.take, self.timer, self.context = take, timer, context
        self.number = 0
        self.losses: list[dict[str, float]] = []
        """Of the global batch, of all steps: `loss` and the four terms."""

    def synchronised(self, count: int) -> list[dict[str, Spent]]:
        """The parts of `count` steps, each from a barrier to the end of its work."""
        parts = []
        for _ in range(count):
            self.context.barrier()
            self.timer.begin()
            made = self.step()
            parts.append(self.timer.end())
            self.losses.append(report(made, self.context))
        return parts

    def free_running(self, count: int) -> Spent:
        """The time of one of `count` steps that nothing waits for."""
        self.context.barrier()
        synchronise(self.context.device)
        wall, cpu = time.perf_counter(), time.process_time()
        made = [self.step() for _ in range(count)]
        synchronise(self.context.device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.losses += [report(losses, self.context) for losses in made]
        return Spent(wall / count, cpu / count)

    def step(self) -> Losses:
        """Take the next step."""
        self.number += 1
        return self.take(self.number - 1)


def report(losses: Losses, context: RankContext) -> dict[str, float]:
    """The losses of the global batch as numbers."""
    values = context.mean(losses.stack().double()).tolist()
    return dict(zip(["loss", *losses.names()[1:]], values, strict=True))


def step_row(
    name: str, config: Config, turns: Sequence[Spent], parts: Sequence[dict[str, Spent]]
) -> Row:
    """The columns that `bench step` and `bench train` share.

    `speed` of the free-running steps over all ranks, `step_ms` of one of them; `synchronised_ms`,
    `parts_ms` and `parts_cpu_ms` of synchronised ones on rank 0: medians, which need not add up.
    `precision`, `tf32` and `deterministic` as in `parallel`; the latter two concern GPUs only.

    Args:
        turns: time of a free-running step in every turn; CPU time of all ranks.
        parts: of every synchronised step.
    """
    parallel = config.parallel
    synchronised = [sum(part.seconds for part in step.values()) for step in parts]
    return {
        "name": name,
        **speed(turns, config.train.batch_size),
        "step_ms": 1000 * median(turn.seconds for turn in turns),
        "synchronised_ms": 1000 * median(synchronised),
        "parts_ms": {n: 1000 * median(step[n].seconds for step in parts) for n in parts[0]},
        "parts_cpu_ms": {n: 1000 * median(step[n].cpu_seconds for step in parts) for n in parts[0]},
        **{key: getattr(parallel, key) for key in ("precision", "tf32", "deterministic")},
    }


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: on its GPU, or resident.

    Raises:
        UsageError: if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resident_bytes(peak=True)
    if peak is None:
        raise UsageError("bench step reads the peak of memory in /proc, which this system lacks")
    return peak
