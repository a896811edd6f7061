"""One contender of `bench step`: it takes its steps on random images, when it is its turn.

A contender is a configuration under an engine, or the same step as `eager` writes it down.
Contenders of one rank live in processes of their own (`Apart`), which wait while it is another's
turn: each has its own peak of memory, and the allocator that its steps really run with.
"""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from kaizen_dist.bench.batches import random_batch
from kaizen_dist.bench.machine import resident_bytes
from kaizen_dist.bench.reference_step import EagerStep
from kaizen_dist.bench.step_timer import Clock, Spent, watched
from kaizen_dist.common.device_clock import synchronise
from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext, threads_of_rank
from kaizen_dist.distributed.malloc import keep_freed_memory, return_freed_memory
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.options import set_determinism
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses

TOTAL_STEPS = 1_000_000
"""Far from the end of a schedule."""


@dataclass(frozen=True)
class Turn:
    """Some steps of a contender, one after the other, on one rank: first each by itself, then as
    many without a pause."""

    steps: list[Spent]
    """Each from a barrier to the end of its work on the device; so are `parts`."""
    parts: list[dict[str, Spent]]
    free: Spent
    """A step of those without a pause: the device is waited for after the last of them only."""
    losses: list[dict[str, float]]
    """Of the global batch, of all steps: `loss` and the four terms."""
    peak_flops: tuple[float, float]
    """Floating-point operations of a large matrix product, right after the steps: a second, and
    a CPU second of one thread."""
    memory_bytes: int
    """At most since the contender began."""


class Runner:
    """A contender in this process, at the first step of its second task."""

    def __init__(self, config: Config, classes: int, context: RankContext, eager: bool) -> None:
        self.config, self.context = config, context
        self.clock = Clock(context.device)
        self.number = 0
        batch = random_batch(config, classes, context)
        self._watch = ExitStack()
        self.take: Callable[[], Losses]
        self._keep = config.parallel.keep_memory and not eager
        if eager:
            plain = EagerStep(config, Learner(config, classes).to(context.device), self.clock)
            self.take = lambda: plain.step(batch.views, batch.labels, self.number, TOTAL_STEPS)
        else:
            engine = engine_class(config.parallel.engine)(
                config, lambda: Learner(config, classes, context), context
            )
            engine.begin_task(1, TOTAL_STEPS, TOTAL_STEPS)
            self._watch.enter_context(watched(engine, self.clock))
            self.take = lambda: engine.step(batch, self.number)

    def turn(self, count: int) -> Turn:
        """Take `count` steps each way; all ranks together."""
        self._take_over()
        steps, parts, losses = [], [], []
        for _ in range(count):
            self.context.barrier()
            self.clock.begin()
            made = self._step()
            parts.append(self.clock.end())
            steps.append(Spent(*map(sum, zip(*parts[-1].values(), strict=True))))
            losses.append(report(made, self.context))
        free, more = self._free(count)
        losses += [report(made, self.context) for made in more]
        memory = memory_bytes(self.context.device)  # before the matrices of the next line
        peak = peak_flops(self.context.device, self.config.parallel.precision)
        return Turn(steps, parts, free, losses, peak, memory)

    def _take_over(self) -> None:
        """Set what is the whole process's, which contenders may share."""
        (keep_freed_memory if self._keep else return_freed_memory)()
        set_determinism(self.config.parallel, self.context.device)
        if self.context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.context.device)

    def _free(self, count: int) -> tuple[Spent, list[Losses]]:
        """Time of a step among `count` that nothing waits for, and the losses of all."""
        self.context.barrier()
        synchronise(self.context.device)
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [self._step() for _ in range(count)]
        synchronise(self.context.device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Spent(wall / count, cpu / count), losses

    def _step(self) -> Losses:
        losses = self.take()
        self.number += 1
        return losses

    def profile(self, path: str) -> None:
        """Take one step and write its trace, with the parts as ranges, for Perfetto or Chrome."""
        self._take_over()
        self.clock.ranges = True
        with torch.profiler.profile() as profiler:
            self.clock.begin()
            self._step()
            self.clock.end()
        self.clock.ranges = False
        profiler.export_chrome_trace(path)

    def close(self) -> None:
        self._watch.close()


class Apart:
    """A `Runner` of one rank in a process of its own; the same calls."""

    def __init__(self, config: Config, classes: int, context: RankContext, eager: bool) -> None:
        processes = multiprocessing.get_context("spawn")
        self._line, theirs = processes.Pipe()
        arguments = (theirs, config, classes, context.device, eager)
        self._process = processes.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def turn(self, count: int) -> Turn:
        turn: Turn = self._ask("turn", count)
        return turn

    def profile(self, path: str) -> None:
        self._ask("profile", path)

    def close(self) -> None:
        self._line.close()
        self._process.join(10)
        self._process.kill()

    def _ask(self, call: str, argument: Any) -> Any:
        try:
            self._line.send((call, argument))
            answer, error = self._line.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise KaizenError(
                f"a contender's process ended with exit code {self._process.exitcode} (-9: most "
                "likely there was no memory left; a smaller train.batch_size needs less)"
            ) from None
        if error is not None:
            raise error
        return answer


def _serve(
    line: Connection, config: Config, classes: int, device: torch.device, eager: bool
) -> None:
    """Answer calls until the other end is closed."""
    torch.set_num_threads(threads_of_rank(config.train.threads))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    runner: Runner | None = None
    while True:
        try:
            call, argument = line.recv()
        except EOFError:
            return
        try:
            runner = runner or Runner(config, classes, RankContext(device=device), eager)
            line.send((getattr(runner, call)(argument), None))
        except (KaizenError, RuntimeError) as error:
            expected = isinstance(error, KaizenError)
            line.send((None, error if expected else KaizenError(f"a contender failed: {error}")))


def arithmetic(config: Config) -> dict[str, Any]:
    """What a row says of how it computed."""
    parallel = config.parallel
    return {name: getattr(parallel, name) for name in ("precision", "tf32", "deterministic")}


def report(losses: Losses, context: RankContext) -> dict[str, float]:
    """The losses of the global batch as numbers."""
    values = context.mean(losses.stack().double()).tolist()
    return dict(zip(["loss", *losses.names()[1:]], values, strict=True))


def peak_flops(device: torch.device, precision: str) -> tuple[float, float]:
    """Operations a second, and a CPU second, of a large matrix product in a precision; the best
    of three.

    Large is what takes some 0.1 s: a CPU without instructions for bf16 is a thousand times slower.
    """
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side, largest = 128, 8192 if device.type == "cuda" else 2048
    while True:
        wall, cpu = product_seconds(device, kind, side)
        if wall >= 0.1 or side == largest:
            return 2 * side**3 / wall, 2 * side**3 / cpu
        side *= 2


def product_seconds(device: torch.device, kind: torch.dtype, side: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, of a product of two square matrices: the best of three after one
    that may set up what it needs."""
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    walls, cpus = [], []
    for _ in range(4):
        wall, cpu = time.perf_counter(), time.process_time()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls[1:]), min(cpus[1:])


def memory_bytes(device: torch.device) -> int:
    """The most that this process has held: on its GPU, or in RAM.

    Raises:
        UsageError: if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resident_bytes(peak=True)
    if peak is None:
        raise UsageError("bench step reads the peak of memory in /proc, which this system lacks")
    return peak
