"""A contender of `bench step`: a configuration under an engine, or the reference step.

Contenders of one rank live in processes of their own (`RemoteContender`), which wait while others
have their turn: each has its own peak of memory, and the allocator that its steps really use.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from kaizen_dist.bench.machine import peak_flops
from kaizen_dist.bench.reference_step import ReferenceStep
from kaizen_dist.bench.result import Spent
from kaizen_dist.bench.step_timer import StepTimer, watched
from kaizen_dist.bench.steps import TOTAL_STEPS, Steps, engine_of, memory_bytes, random_batch
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext, threads_of_rank
from kaizen_dist.distributed.malloc import keep_freed_memory, return_freed_memory
from kaizen_dist.engine.options import set_determinism
from kaizen_dist.learner.learner import Learner


@dataclass(frozen=True)
class Contender:
    name: str
    config: Config
    eager: bool = False
    """The reference step in place of an engine's."""


@dataclass(frozen=True)
class StepTurn:
    """One turn on one rank: synchronised steps, then as many free-running ones."""

    parts: list[dict[str, Spent]]
    """Of every synchronised step."""
    free: Spent
    """A free-running step."""
    losses: list[dict[str, float]]
    """Of all steps."""
    peak_flops: tuple[float, float]
    """As `machine.peak_flops`, right after the steps."""
    memory_bytes: int
    """Peak since the contender began."""


class LocalContender(Steps):
    """A contender in this process, at the first step of its second task."""

    def __init__(self, contender: Contender, classes: int, context: RankContext) -> None:
        config = self.config = contender.config
        batch, timer = random_batch(config, classes, context), StepTimer(context.device)
        self._keep_memory = config.parallel.keep_memory and not contender.eager
        self._watch = ExitStack()
        if contender.eager:
            self.learner = Learner(config, classes).to(context.device)
            eager = ReferenceStep(config, self.learner, timer)
            super().__init__(
                lambda number: eager.step(batch.views, batch.labels, number, TOTAL_STEPS),
                timer,
                context,
            )
            return
        engine = engine_of(config, classes, context)
        engine.begin_task(1, TOTAL_STEPS, TOTAL_STEPS)
        self.learner = engine.learner
        self._watch.enter_context(watched(engine, timer))
        super().__init__(lambda number: engine.step(batch, number), timer, context)

    def turn(self, count: int) -> StepTurn:
        """Take `count` steps each way; all ranks together."""
        self._set_process()
        device, self.losses = self.context.device, []
        parts, free = self.synchronised(count), self.free_running(count)
        memory = memory_bytes(device)  # before the matrices of the next line
        peak = peak_flops(device, self.config.parallel.precision)
        return StepTurn(parts, free, self.losses, peak, memory)

    def profile(self, path: Path) -> None:
        """Take one step and write its trace, with the parts as ranges, for Perfetto or Chrome."""
        self._set_process()
        self.timer.ranges = True
        with torch.profiler.profile() as profiler:
            self.timer.begin()
            self.step()
            self.timer.end()
        self.timer.ranges = False
        profiler.export_chrome_trace(str(path))

    def close(self) -> None:
        self._watch.close()

    def _set_process(self) -> None:
        """Set what belongs to the whole process, which contenders may share."""
        (keep_freed_memory if self._keep_memory else return_freed_memory)()
        set_determinism(self.config.parallel, self.context.device)
        if self.context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.context.device)


class RemoteContender:
    """A contender of one rank in a process of its own; the same calls."""

    def __init__(self, contender: Contender, classes: int, context: RankContext) -> None:
        given = (contender, classes, context.device)
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=_prepare, initargs=given)

    def turn(self, count: int) -> StepTurn:
        turn: StepTurn = self._ask("turn", count)
        return turn

    def profile(self, path: Path) -> None:
        self._ask("profile", path)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, call: str, argument: Any) -> Any:
        try:
            return self._pool.submit(_answer, call, argument).result()
        except BrokenProcessPool:
            raise KaizenError(
                "a contender's process was ended (most likely there was no memory left; a smaller "
                "train.batch_size needs less)"
            ) from None
        except RuntimeError as error:
            raise KaizenError(f"a contender failed: {error}") from error


_given: list[Any] = []


def _prepare(contender: Contender, classes: int, device: torch.device) -> None:
    """In a new process, which ends with the one that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads_of_rank(contender.config.train.threads))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _given[:] = contender, classes, RankContext(device=device)


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


@cache
def _own() -> LocalContender:
    return LocalContender(*_given)


def _answer(call: str, argument: Any) -> Any:
    return getattr(_own(), call)(argument)
