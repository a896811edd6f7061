"""The momentum network: a slow copy of the student that gives a method its keys."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kaizen_dist.learner.backbone import Backbone


class MomentumNetwork(nn.Module):
    """An exponential moving average of a backbone's and a projector's parameters.

    Buffers are not averaged: each network keeps BatchNorm statistics of what it has seen.
    """

    def __init__(self, backbone: Backbone, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """The keys [n, d] of both views [2, n, 3, s, s], each a batch of its own."""
        return self.projector(self.backbone(views[0])), self.projector(self.backbone(views[1]))

    @torch.no_grad()
    def update(self, student: Iterable[Tensor], tau: float) -> None:
        """own = tau own + (1 - tau) student, for the student's parameters in the same order."""
        torch._foreach_lerp_(list(self.parameters()), list(student), 1 - tau)


def cosine_tau(start: float, end: float, progress: float) -> float:
    """tau at `progress` in [0, 1] of a task, from `start` to `end` along a half cosine (BYOL)."""
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2
