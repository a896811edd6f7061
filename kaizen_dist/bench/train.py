"""How fast a run trains: the step with the real loader on a stream, and what it waits for.

In comes a configuration and a stream; the learner takes steps of the second task (of the only
one, where there is one), with the replay that a run would have kept of the first. No run folder
is needed or made. The loader makes batches ahead on threads of its own.

Turns of two kinds follow each other. Speed and `data_wait` are those of steps as a run takes them,
where nothing waits for the device between two steps (as in bench/step.py). The parts are those of
steps that are waited for one by one; what lies between two of them is `data`.
"""

import statistics
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, NamedTuple

from rich.table import Table

from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.runner import TOTAL_STEPS, arithmetic, memory_bytes, report
from kaizen_dist.bench.step_timer import COMMUNICATION, PARTS, REST, Clock, Spent, watched
from kaizen_dist.common.device_clock import synchronise
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import Engine
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses
from kaizen_dist.runs import checks
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.training.run_log import StepMeter
from kaizen_dist.training.task_data import replay_without_run, task_loader
from kaizen_dist.views.loader import Batch, Loader

DATA = "data"
WARM_UP = 2
"""Steps that fill the loader's queue and the allocator, and are not counted."""
TURN = 10
"""Steps of one kind in a row."""


@dataclass(frozen=True)
class Row:
    """Medians over steps or turns, but for the shares, which are of all steps together."""

    name: str
    images_per_second: float
    """Images of the task, over all ranks."""
    cpu_ms_per_image: float
    """All threads of rank 0, those of the loader included, over its images."""
    images_per_second_spread: tuple[float, float]
    """Of the slowest and the fastest turn."""
    step_ms: float
    """Of steps that follow each other without a pause; so is all above."""
    synchronised_ms: float
    """Of a step that is waited for before the next begins; so are the parts."""
    parts_ms: dict[str, float]
    data_wait: float
    """Share of the time that was lost waiting for the loader, as in events.jsonl."""
    communication: float
    """Share of a step that is waited for that was spent in collectives."""
    precision: str
    """As in `parallel`; so are the next two, which concern GPUs alone."""
    tf32: bool
    deterministic: bool
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
        table.add_row("all", f"{row.synchronised_ms:,.1f}")
        table.add_row("without a pause", f"{row.step_ms:,.1f}")
        table.add_row("waiting for data", f"{row.data_wait:.1%}")
        table.add_row("communication", f"{row.communication:.1%}")
        table.add_row("memory", f"{row.memory_bytes / 1e9:.2f} GB")
        return table


def bench_train(
    config: Config, stream: Stream, context: RankContext, steps: int = 20
) -> TrainBench:
    """Measures `steps` steps of each kind on the ranks there are.

    Raises:
        UsageError: if configuration and stream do not fit.
        DataError: if an image cannot be read.
    """
    facts = machine()
    checks.check(config, stream, context.world_size)
    engine = engine_class(config.parallel.engine)(
        config, lambda: Learner(config, stream.num_classes, context), context
    )
    task = min(1, len(stream) - 1)
    loader = _loader(config, stream, task, context)
    engine.begin_task(task, loader.order.steps_per_epoch, TOTAL_STEPS)
    clock = Clock(context.device)
    with watched(engine, clock), closing(_batches(loader)) as batches:
        taken = _Taken(engine, clock, batches, context)
        taken.one_by_one(WARM_UP)
        taken.steps.clear()
        for done in range(0, steps, TURN):
            count = min(TURN, steps - done)
            taken.one_by_one(count)
            taken.in_a_row(count)
            if context.main:
                seconds = taken.turns[-1].seconds
                line = f"step {done + count} of {steps}: {seconds:.3f} s"
                print(line, file=sys.stderr, flush=True)
    row = _row(config, context, taken)
    settings = {"ranks": context.world_size, "steps": steps, "workers": config.views.workers}
    return TrainBench([row], facts, settings)


class _Turn(NamedTuple):
    """Some steps in a row."""

    seconds: float
    """Of one of them; so is the next."""
    cpu_seconds: float
    waited: float
    """Seconds of all, for the loader."""
    steps: int


class _Taken:
    """The steps taken so far, of either kind."""

    def __init__(
        self, engine: Engine, clock: Clock, batches: Iterator[Batch], context: RankContext
    ) -> None:
        self._engine, self._clock, self._batches, self._context = engine, clock, batches, context
        self._number = 0
        self.steps: list[dict[str, Spent]] = []
        """The parts of those that were waited for."""
        self.turns: list[_Turn] = []
        """Of all others."""
        self.losses: list[dict[str, float]] = []

    def one_by_one(self, count: int) -> None:
        """Steps that are waited for."""
        for _ in range(count):
            self._clock.begin()
            self._clock.mark(DATA)
            batch = next(self._batches)
            self._clock.mark(REST)
            made = self._step(batch)
            self.steps.append(self._clock.end())
            self.losses.append(report(made, self._context))

    def in_a_row(self, count: int) -> None:
        """Steps as a run takes them."""
        self._context.barrier()
        synchronise(self._context.device)
        meter, cpu, made = StepMeter(self._context.device), time.process_time(), []
        for _ in range(count):
            with meter.waiting():
                batch = next(self._batches)
            made.append(self._step(batch))
        synchronise(self._context.device)
        cpu = time.process_time() - cpu
        _, waited, seconds = meter.read()
        self.turns.append(_Turn(seconds / count, cpu / count, waited * seconds, count))
        self.losses += [report(losses, self._context) for losses in made]

    def _step(self, batch: Batch) -> Losses:
        self._number += 1
        return self._engine.step(batch, self._number - 1)


def _loader(config: Config, stream: Stream, task: int, context: RankContext) -> Loader:
    """A run's, but that what is replayed is read from the stream's own shards."""
    if config.replay.select == "herding":
        # What it would keep takes features, and costs as much to read.
        replay = config.replay.model_copy(update={"select": "random"})
        config = config.model_copy(update={"replay": replay})
    replayed, ranks = replay_without_run(config, stream), (context.rank, context.world_size)
    return task_loader(config, stream, task, replayed, *ranks, context.device)


def _batches(loader: Loader) -> Generator[Batch, None, None]:
    per_epoch = loader.order.steps_per_epoch
    yield from loader.batches(divmod(step, per_epoch) for step in count())


def _row(config: Config, context: RankContext, taken: _Taken) -> Row:
    images = config.train.batch_size
    walls = [turn.seconds for turn in taken.turns]
    waited_for = [sum(part.seconds for part in parts.values()) for parts in taken.steps]
    talked = sum(parts[COMMUNICATION].seconds for parts in taken.steps)
    parts = {n: statistics.median(p[n].seconds for p in taken.steps) for n in (DATA, *PARTS)}
    wall, cpu = statistics.median(walls), statistics.median(t.cpu_seconds for t in taken.turns)
    return Row(
        name=f"{config.method}, {config.parallel.engine}, {config.parallel.precision}",
        images_per_second=images / wall,
        cpu_ms_per_image=1000 * cpu * context.world_size / images,
        images_per_second_spread=(images / max(walls), images / min(walls)),
        step_ms=1000 * wall,
        synchronised_ms=1000 * statistics.median(waited_for),
        parts_ms={name: 1000 * seconds for name, seconds in parts.items()},
        data_wait=sum(t.waited for t in taken.turns)
        / sum(t.seconds * t.steps for t in taken.turns),
        communication=talked / sum(waited_for),
        **arithmetic(config),
        memory_bytes=memory_bytes(context.device),
        losses=taken.losses,
    )
