"""Times the parts of a step: student, momentum network, teacher, backward pass, ...

A `StepTimer` is told where a part begins; time is that part's until the next begins, so that the
parts of a step add up to the step. `watched` lets the timer follow an engine's steps by hooks
only: nothing of the engine is changed, and one that is not watched pays nothing. On a GPU the
marks are events in the stream of the work, and no part waits for another.

Collectives that the step waits for are `communication`, also those in the middle of another
part (batch statistics, negatives). Of DDP's gradients it is the wait that is left when the last
bucket is ready. FSDP's and DeepSpeed's own traffic has streams of its own on a GPU, and counts
as the part that waits for it; on a CPU it is communication.
"""

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from kaizen_dist.bench.result import Spent
from kaizen_dist.common.device_clock import Moment, moment, seconds_between, synchronise
from kaizen_dist.engine.base import Engine

STUDENT, MOMENTUM, TEACHER, BACKWARD = "student", "momentum", "teacher", "backward"
OPTIMIZER, COMMUNICATION, REST = "optimizer", "communication", "rest"
PARTS = (STUDENT, MOMENTUM, TEACHER, BACKWARD, OPTIMIZER, COMMUNICATION, REST)
"""Student: its forward pass and all losses. Optimizer: with clipping's end and the momentum update.
Rest: learning rates, transfer of the batch to the device, gradients set to none."""

COLLECTIVES = tuple(
    name
    for name, call in vars(dist).items()
    if type(call) is FunctionType and "async_op" in inspect.signature(call).parameters
)
"""All of torch.distributed: SyncBatchNorm calls another one in torch 2.14 than in 2.11."""


class StepTimer:
    """Follows one step after the other: `begin`, any number of `mark`s, `end`.

    With `ranges` every part is also a range of that name in a trace of torch.profiler.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.ranges = False
        self._marks: list[tuple[str, Moment, float]] = []
        self._stream: torch.cuda.Stream | None = None
        """Of the step; some parts (a teacher on a side stream, FSDP's traffic) have others."""
        self._range = ExitStack()
        self._running = False

    def begin(self) -> None:
        """A step begins, with the part `REST`."""
        self._marks.clear()
        if self._device.type == "cuda":
            self._stream = torch.cuda.current_stream(self._device)
        self._running = True
        self.mark(REST)

    def mark(self, part: str) -> str:
        """From here on time belongs to `part` (one of PARTS, or a caller's own). Returns the part
        that it ends. Does nothing between steps."""
        if not self._running:
            return part
        before = self._marks[-1][0] if self._marks else REST
        self._marks.append((part, moment(self._device, self._stream), time.process_time()))
        self._range.close()
        if self.ranges:
            self._range.enter_context(torch.profiler.record_function(part))
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
        """The step ends, and its device is waited for. The time of every part."""
        self.mark(REST)
        self._range.close()
        self._running = False
        synchronise(self._device)
        spent = dict.fromkeys(PARTS, Spent(0.0, 0.0))
        for (name, since, cpu), (_, until, cpu_until) in zip(
            self._marks, self._marks[1:], strict=False
        ):
            before = spent.get(name, Spent(0.0, 0.0))
            seconds = before.seconds + seconds_between(since, until)
            spent[name] = Spent(seconds, before.cpu_seconds + cpu_until - cpu)
        return spent


@contextmanager
def watched(engine: Engine, timer: StepTimer) -> Iterator[None]:
    """Let a timer follow the steps of an engine whose task has begun."""

    def mark(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # a hook's result would replace arguments or output
            timer.mark(part)

        return hook

    def follow(module: nn.Module | None, part: str, then: str) -> Iterator[Any]:
        """A module's forward pass is `part`, and the time after it `then`."""
        if module is not None:
            # Before any other hook, and after every other: engines bring parameters in theirs.
            yield module.register_forward_pre_hook(mark(part), prepend=True)
            yield module.register_forward_hook(mark(then))

    learner = engine.learner
    with ExitStack() as stack:
        for handle in (
            *follow(learner, STUDENT, BACKWARD),
            *follow(learner.momentum, MOMENTUM, STUDENT),
            *follow(learner.teacher, TEACHER, STUDENT),
            engine.optimizer.register_step_pre_hook(mark(OPTIMIZER)),
        ):
            stack.callback(handle.remove)
        for name in COLLECTIVES:
            stack.callback(setattr, dist, name, getattr(dist, name))
            setattr(dist, name, _timed(getattr(dist, name), timer))
        _follow_gradients(engine, timer)
        yield


def _timed(collective: Callable[..., Any], timer: StepTimer) -> Callable[..., Any]:
    """A collective that counts as communication where it blocks."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("async_op"):
            return collective(*args, **kwargs)
        with timer.part(COMMUNICATION):
            return collective(*args, **kwargs)

    return timed


def _follow_gradients(engine: Engine, timer: StepTimer) -> None:
    """The wait for DDP's last bucket is communication; its hook stays for good."""
    module = getattr(engine, "module", None)
    if not isinstance(module, DistributedDataParallel):
        return

    def exchange(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            timer.mark(COMMUNICATION)
        return allreduce_hook(group, bucket)

    module.register_comm_hook(None, exchange)
