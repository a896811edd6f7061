"""Speed of training: the step with the real loader on a stream, and its waits.

The learner takes steps of the second task of a stream (of the only one, where there is one), with
the replay that a run would have kept of the first. No run folder is needed or made. The loader
prefetches batches on threads of its own.

Turns measure in both ways of `steps`: speed and `data_wait` of free-running steps, parts of
synchronised ones, in which `data` is the time until the next batch.

Columns of the one row, beside those of `steps.step_row`: `data_wait` (share of the time that was
lost waiting for the loader, as in events.jsonl; of all steps together), `communication` (share of
synchronised steps spent in collectives), `memory_bytes`, `losses` (of every step). CPU time is that
of all threads of rank 0, those of the loader included, times the ranks.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count

from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.result import BenchResult, Row, Sheet, Spent
from kaizen_dist.bench.step_timer import COMMUNICATION, PARTS, StepTimer, watched
from kaizen_dist.bench.steps import TOTAL_STEPS, Steps, engine_of, memory_bytes, step_row
from kaizen_dist.common.console import say
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Engine
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


def bench_train(
    config: Config, stream: Stream, context: RankContext, steps: int = 20
) -> BenchResult:
    """Measure `steps` steps of each kind on all ranks.

    Raises:
        UsageError: if configuration and stream do not fit.
        DataError: if an image cannot be read.
    """
    facts = machine()
    checks.check(config, stream, context.world_size)
    engine = engine_of(config, stream.num_classes, context)
    task = min(1, len(stream) - 1)
    loader = loader_of(config, stream, task, context)
    engine.begin_task(task, loader.order.steps_per_epoch, TOTAL_STEPS)
    timer = StepTimer(context.device)
    with watched(engine, timer), closing(_batches(loader)) as batches:
        taken = LoadedSteps(engine, timer, batches, context)
        taken.synchronised(WARM_UP)
        parts = []
        for done in range(0, steps, TURN):
            number = min(TURN, steps - done)
            parts += taken.synchronised(number)
            seconds = taken.free_running(number).seconds
            if context.main:
                say(f"step {done + number} of {steps}: {seconds:.3f} s")
    name = f"{config.method}, {config.parallel.engine}, {config.parallel.precision}"
    turns = [Spent(turn.seconds, turn.cpu_seconds * context.world_size) for turn in taken.turns]
    talked = sum(step[COMMUNICATION].seconds for step in parts)
    row = step_row(name, config, turns, parts) | {
        "data_wait": taken.waited / taken.seconds,
        "communication": talked / sum(part.seconds for step in parts for part in step.values()),
        "memory_bytes": memory_bytes(context.device),
        "losses": taken.losses,
    }
    settings = {"ranks": context.world_size, "steps": steps, "workers": config.views.workers}
    return BenchResult([row], facts, settings, [_sheet(row)])


class LoadedSteps(Steps):
    """Steps on the loader's batches."""

    def __init__(
        self, engine: Engine, timer: StepTimer, batches: Iterator[Batch], context: RankContext
    ) -> None:
        super().__init__(self._take, timer, context)
        self._engine, self._batches = engine, batches
        self._meter = StepMeter(context.device)
        self.turns: list[Spent] = []
        """Of free-running steps; so are the next two."""
        self.waited = self.seconds = 0.0
        """In all, for the loader and altogether."""

    def free_running(self, count: int) -> Spent:
        """As of `Steps`, with the wait for the loader."""
        self._meter.restart()
        spent = super().free_running(count)
        _, share, seconds = self._meter.read()
        self.waited += share * seconds
        self.seconds += spent.seconds * count
        self.turns.append(spent)
        return spent

    def _take(self, number: int) -> Losses:
        with self._meter.waiting(), self.timer.part(DATA):
            batch = next(self._batches)
        return self._engine.step(batch, number)


def loader_of(config: Config, stream: Stream, task: int, context: RankContext) -> Loader:
    """As in a run, but replayed images are read from the stream's own shards."""
    if config.replay.select == "herding":
        # Herding needs features; its choice costs as much to read.
        replay = config.replay.model_copy(update={"select": "random"})
        config = config.model_copy(update={"replay": replay})
    replayed, ranks = replay_without_run(config, stream), (context.rank, context.world_size)
    return task_loader(config, stream, task, replayed, *ranks, context.device)


def _batches(loader: Loader) -> Generator[Batch, None, None]:
    per_epoch = loader.order.steps_per_epoch
    yield from loader.batches(divmod(step, per_epoch) for step in count())


def _sheet(row: Row) -> Sheet:
    lines = [[part, f"{row['parts_ms'][part]:,.1f}"] for part in (DATA, *PARTS)]
    lines += [
        ["all", f"{row['synchronised_ms']:,.1f}"],
        ["without a pause", f"{row['step_ms']:,.1f}"],
        ["waiting for data", f"{row['data_wait']:.1%}"],
        ["communication", f"{row['communication']:.1%}"],
        ["memory", f"{row['memory_bytes'] / 1e9:.2f} GB"],
    ]
    title = f"{row['name']}: {row['images_per_second']:,.1f} images/s"
    return Sheet(title, ("part", "ms a step"), lines)
