"""Floating-point operations of a step, counted without computing anything.

In comes a configuration; its learner goes through one step on torch's `meta` device, which has
shapes and no values, and the operations of matrix products and convolutions are counted. A
multiplication and an addition are two. Everything else (normalisation, ReLU, losses, optimizer)
is bound by memory and not counted, as is usual.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from kaizen_dist.config import Config
from kaizen_dist.learner.learner import Learner


@dataclass(frozen=True)
class StepFlops:
    """Of one step over all ranks, with teacher and replay where the configuration has them."""

    student: int
    """Its forward pass on both views, heads and losses included."""
    momentum: int
    teacher: int
    backward: int

    @property
    def total(self) -> int:
        return self.student + self.momentum + self.teacher + self.backward

    @property
    def teacher_share(self) -> float:
        return self.teacher / self.total


def step_flops(config: Config, classes: int, first: bool = False) -> StepFlops:
    """Of a step of a later task, or of the `first`, which has neither teacher nor replay."""
    replayed = 0 if first or config.replay.fraction == 0 else config.replay.batch_size
    count, size = config.train.batch_size + replayed, config.views.size
    with torch.device("meta"):
        learner = Learner(config, classes)
        learner.begin_task(first=first)
        views = torch.empty(2, count, 3, size, size)
        labels = torch.empty(count, dtype=torch.long)
    with FlopCounterMode(display=False) as momentum:
        if learner.momentum is not None:
            learner.momentum(views)
    with FlopCounterMode(display=False) as teacher:
        if learner.teacher is not None:
            learner.teacher(learner.distilled_rows(views, 1))
    with FlopCounterMode(display=False) as forward:
        losses = learner(views, labels)
    with FlopCounterMode(display=False) as backward:
        losses.total.backward()
    apart = momentum.get_total_flops(), teacher.get_total_flops()
    student = forward.get_total_flops() - sum(apart)
    return StepFlops(student, *apart, backward.get_total_flops())
