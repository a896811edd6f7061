"""How fast a run trains: the step with the real loader on a stream, and what it waits for.

In comes a configuration and a stream; the learner takes steps of the second task (of the only
one, where there is one), with the replay that a run would have kept of the first. No run folder
is needed or made. Time between two steps is `data`: what the step had to wait for the loader,
which makes batches ahead on threads of its own.
"""

import statistics
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from rich.table import Table

from kaizen_dist import run
from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.parts import PARTS, Clock, Spent, watched
from kaizen_dist.bench.runner import TOTAL_STEPS, memory_bytes, report
from kaizen_dist.config import Config
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.process import Process
from kaizen_dist.inspection import order_of
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import lanes_of_rank
from kaizen_dist.views.loader import Batch, Loader

DATA = "data"
WARM_UP = 2
"""Steps that fill the loader's queue and the allocator, and are not counted."""


@dataclass(frozen=True)
class Row:
    """Medians over the steps, but for the shares, which are of all steps together."""

    name: str
    images_per_second: float
    """Images of the task, over all ranks."""
    cpu_ms_per_image: float
    """All threads of rank 0, those of the loader included, over its images."""
    images_per_second_spread: tuple[float, float]
    """Of the slowest and the fastest step."""
    step_ms: float
    parts_ms: dict[str, float]
    data_wait: float
    """Share of the time that was spent waiting for the loader."""
    communication: float
    """Share of the time that was spent in collectives."""
    memory_bytes: int
    losses: list[dict[str, float]]


@dataclass(frozen=True)
class TrainBench:
    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine": {...}, "settings": {...}}."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal."""
        row = self.rows[0]
        table = Table(title=f"{row.name}: {row.images_per_second:,.1f} images/s")
        table.add_column("part")
        table.add_column("ms a step", justify="right")
        for name, value in row.parts_ms.items():
            table.add_row(name, f"{value:,.1f}")
        table.add_row("step", f"{row.step_ms:,.1f}")
        table.add_row("waiting for data", f"{row.data_wait:.1%}")
        table.add_row("communication", f"{row.communication:.1%}")
        table.add_row("memory", f"{row.memory_bytes / 1e9:.2f} GB")
        return table


def bench_train(config: Config, stream: Stream, process: Process, steps: int = 20) -> TrainBench:
    """Measures `steps` steps on the ranks there are.

    Raises:
        UsageError: if configuration and stream do not fit.
        DataError: if an image cannot be read.
    """
    facts = machine()
    run.check(config, stream, process.world_size)
    engine = engine_class(config.parallel.engine)(
        config, lambda: Learner(config, stream.num_classes, process), process
    )
    task = min(1, len(stream) - 1)
    loader = _loader(config, stream, task, process)
    engine.begin_task(task, loader.order.steps_per_epoch, TOTAL_STEPS)
    clock = Clock(process.device)
    taken, losses = [], []
    with watched(engine, clock), closing(_batches(loader)) as batches:
        for number in range(WARM_UP + steps):
            clock.begin()
            clock.mark(DATA)
            batch = next(batches)
            clock.mark("rest")
            made = engine.step(batch, number)
            taken.append(clock.end())
            losses.append(report(made, process))
            if process.main:
                seconds = sum(part.seconds for part in taken[-1].values())
                line = f"step {number + 1} of {WARM_UP + steps}: {seconds:.3f} s"
                print(line, file=sys.stderr, flush=True)
    row = _row(config, process, taken[WARM_UP:], losses)
    settings = {"ranks": process.world_size, "steps": steps, "workers": config.views.workers}
    return TrainBench([row], facts, settings)


def _loader(config: Config, stream: Stream, task: int, process: Process) -> Loader:
    """A run's, but that what is replayed is read from the stream's own shards."""
    if config.replay.select == "herding":
        # What it would keep takes features, and costs as much to read.
        replay = config.replay.model_copy(update={"select": "random"})
        config = config.model_copy(update={"replay": replay})
    order, splits = order_of(config, stream, task)
    lanes = lanes_of_rank(config.lanes, process.rank, process.world_size)
    return Loader(order, splits, config.views, lanes, process.device)


def _batches(loader: Loader) -> Generator[Batch, None, None]:
    per_epoch = loader.order.steps_per_epoch
    yield from loader.batches(divmod(step, per_epoch) for step in count())


def _row(
    config: Config,
    process: Process,
    taken: list[dict[str, Spent]],
    losses: list[dict[str, float]],
) -> Row:
    images = config.train.batch_size
    walls = [sum(part.seconds for part in parts.values()) for parts in taken]
    cpus = [sum(part.cpu_seconds for part in parts.values()) for parts in taken]
    names = (DATA, *PARTS)
    medians = {n: statistics.median(parts[n].seconds for parts in taken) for n in names}

    def share(name: str) -> float:
        return sum(parts[name].seconds for parts in taken) / sum(walls)

    wall = statistics.median(walls)
    return Row(
        name=f"{config.method}, {config.parallel.engine}, {config.parallel.precision}",
        images_per_second=images / wall,
        cpu_ms_per_image=1000 * statistics.median(cpus) * process.world_size / images,
        images_per_second_spread=(images / max(walls), images / min(walls)),
        step_ms=1000 * wall,
        parts_ms={name: 1000 * seconds for name, seconds in medians.items()},
        data_wait=share(DATA),
        communication=share("communication"),
        memory_bytes=memory_bytes(process.device),
        losses=losses,
    )
