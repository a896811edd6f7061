"""The teacher: a frozen copy of the model as it was when the task began."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen_dist.learner.backbone import Backbone


class TeacherOutput(NamedTuple):
    """Output of a teacher on both views; None where it has no such head."""

    projections: Tensor | None
    """[2, n, d]"""
    logits: Tensor | None
    """[2, n, C]"""
    supervised: Tensor | None = None
    """[2, n, d]: projections of the supervised branch."""


class Teacher(nn.Module):
    """Copies of a backbone and of the given heads, whose weights never change.

    It normalises with the running statistics of the student, unless `batch_stats` is set: then
    each view is normalised with its own statistics, as the paper's reference code does, and
    running statistics are not kept at all.
    """

    def __init__(
        self,
        backbone: Backbone,
        projector: nn.Module | None,
        classifier: nn.Module | None,
        supervised: nn.Module | None,
        batch_stats: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.projector = copy.deepcopy(projector)
        self.classifier = copy.deepcopy(classifier)
        self.supervised = copy.deepcopy(supervised)
        self.batch_stats = batch_stats
        if batch_stats:
            _forget_running_statistics(self)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Teacher":  # noqa: ARG002 - a student's mode is not ours
        """Keep the teacher's own mode when a parent module is switched."""
        return super().train(self.batch_stats)

    @torch.no_grad()
    def forward(self, views: Tensor) -> TeacherOutput:
        """Output on views [2, n, 3, s, s], without gradients."""
        batches = list(views) if self.batch_stats else [views.flatten(0, 1)]
        features = [self.backbone(b) for b in batches]

        def through(head: nn.Module | None) -> Tensor | None:
            if head is None:
                return None
            return torch.cat([head(f) for f in features]).unflatten(0, views.shape[:2])

        heads = self.projector, self.classifier, self.supervised
        return TeacherOutput(*map(through, heads))


def _forget_running_statistics(module: nn.Module) -> None:
    """Make every BatchNorm use the statistics of its batch alone."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
