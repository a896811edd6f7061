"""How long the parts of a step take: student, momentum network, teacher, backward pass, ...

A `Clock` is told where a part begins; whatever follows is that part's until the next begins,
so that the parts of a step add up to the step. `watched` lets the clock follow an engine's
steps by hooks alone: nothing of the engine is changed, and one that is not watched pays nothing.
On a GPU the marks are events in the stream of the work, and no part waits for another.

Collectives that the step waits for are `communication`, also those in the middle of another
part (batch statistics, negatives). Of DDP's gradients it is what is left to wait for when the
last bucket is ready. FSDP's and DeepSpeed's own traffic has streams of its own on a GPU, and counts
as the part that waits for it; on a CPU it is communication.
"""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from kaizen_dist.common.device_clock import Moment, moment, seconds_between, synchronise
from kaizen_dist.engine.base import Engine

REST = "rest"
STUDENT = "student"
MOMENTUM = "momentum"
TEACHER = "teacher"
BACKWARD = "backward"
OPTIMIZER = "optimizer"
COMMUNICATION = "communication"
PARTS = (STUDENT, MOMENTUM, TEACHER, BACKWARD, OPTIMIZER, COMMUNICATION, REST)
"""Student: its forward pass and all losses. Optimizer: with clipping's end and the moving average.
Rest: learning rates, the batch's way to the device, gradients set to none."""

COLLECTIVES = tuple(
    name
    for name, call in vars(dist).items()
    if type(call) is FunctionType and "async_op" in inspect.signature(call).parameters
)
"""Of torch.distributed, whatever they are called: SyncBatchNorm's is another one in torch 2.14 than
in 2.11."""


class Spent(NamedTuple):
    """Time of a part, or of a step."""

    seconds: float
    """By the wall clock; on a GPU, of its stream."""
    cpu_seconds: float
    """Of all threads of this process."""


class Clock:
    """Follows one step after the other: `begin`, any number of `mark`s, `end`.

    With `ranges` every part is also a range of that name in a trace of torch.profiler.
    """

    def __init__(self, device: torch.device, ranges: bool = False) -> None:
        self._device = device
        self.ranges = ranges
        self._marks: list[tuple[str, Moment, float]] = []
        self._stream: torch.cuda.Stream | None = None
        """Of the step; some parts (a teacher beside, FSDP's traffic) have others."""
        self._open: torch.profiler.record_function | None = None
        self.running = False

    def begin(self) -> None:
        """A step begins, with the part `REST`."""
        self._marks.clear()
        if self._device.type == "cuda":
            self._stream = torch.cuda.current_stream(self._device)
        self.running = True
        self.mark(REST)

    def mark(self, part: str) -> str:
        """From here on time is `part`'s (one of PARTS, or a caller's own); the part that it ends.
        Between steps it does nothing."""
        if not self.running:
            return part
        before = self._marks[-1][0] if self._marks else REST
        self._marks.append((part, moment(self._device, self._stream), time.process_time()))
        if self.ranges:
            self._range(part)
        return before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part within another, which goes on thereafter."""
        before = self.mark(name)
        try:
            yield
        finally:
            self.mark(before)

    def end(self) -> dict[str, Spent]:
        """The step ends, and its device is waited for. What every part took."""
        self.mark(REST)
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
        self.running = False
        synchronise(self._device)
        spent = {name: Spent(0.0, 0.0) for name in PARTS}
        for (name, since, cpu), (_, until, cpu_until) in zip(
            self._marks, self._marks[1:], strict=False
        ):
            seconds, cpu_seconds = spent.get(name, Spent(0.0, 0.0))
            spent[name] = Spent(
                seconds + seconds_between(since, until), cpu_seconds + cpu_until - cpu
            )
        return spent

    def _range(self, part: str) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = torch.profiler.record_function(part)
        self._open.__enter__()


@contextmanager
def watched(engine: Engine, clock: Clock) -> Iterator[None]:
    """Let a clock follow the steps of an engine whose task has begun."""
    with contextlib.ExitStack() as stack:
        learner = engine.learner
        _follow(stack, learner, clock, STUDENT, then=BACKWARD)
        if learner.momentum is not None:
            _follow(stack, learner.momentum, clock, MOMENTUM, then=STUDENT)
        if learner.teacher is not None:
            _follow(stack, learner.teacher, clock, TEACHER, then=STUDENT)
        before = engine.optimizer.register_step_pre_hook(lambda *_: _mark(clock, OPTIMIZER))
        stack.callback(before.remove)
        for name in COLLECTIVES:
            stack.enter_context(_timed_collective(name, clock))
        _follow_gradients(engine, clock)
        yield


def _mark(clock: Clock, part: str) -> None:
    # A hook's answer would be taken for other arguments or another result.
    clock.mark(part)


def _follow(
    stack: contextlib.ExitStack, module: nn.Module, clock: Clock, part: str, then: str
) -> None:
    """A module's forward pass is `part`, and what comes after it `then`."""
    # Before any other hook, and after every other: engines bring parameters in theirs.
    first = module.register_forward_pre_hook(lambda *_: _mark(clock, part), prepend=True)
    last = module.register_forward_hook(lambda *_: _mark(clock, then))
    stack.callback(first.remove)
    stack.callback(last.remove)


@contextmanager
def _timed_collective(name: str, clock: Clock) -> Iterator[None]:
    """Count a blocking collective of torch.distributed as communication."""
    original: Callable[..., Any] = getattr(dist, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("async_op"):
            return original(*args, **kwargs)
        with clock.part(COMMUNICATION):
            return original(*args, **kwargs)

    setattr(dist, name, timed)
    try:
        yield
    finally:
        setattr(dist, name, original)


def _follow_gradients(engine: Engine, clock: Clock) -> None:
    """What DDP's last bucket is waited for is communication; its hook stays for good."""
    module = getattr(engine, "module", None)
    if not isinstance(module, DistributedDataParallel):
        return

    def exchange(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            clock.mark(COMMUNICATION)
        return allreduce_hook(group, bucket)

    module.register_comm_hook(None, exchange)
