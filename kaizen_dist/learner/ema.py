"""A running mean of the student's weights, to be measured and deployed in its place.

Steps at the end of a task jump about a good place; their mean lies nearer to it. It teaches
nothing and is taught by nothing: training is the same with it and without.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kaizen_dist.learner.backbone import Backbone

_BEGIN = 10
"""As so many steps count the weights that a task began with."""


class Average(nn.Module):
    """Exponential moving average of a backbone and a classifier over the steps of a task.

    Its decay begins low, so that the first weights are soon forgotten, and ends at the one given.
    BatchNorm statistics are averaged like the weights they belong to.
    """

    steps: Tensor

    def __init__(self, backbone: Backbone, classifier: nn.Module | None) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.classifier = copy.deepcopy(classifier)
        self.requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.train()

    def train(self, mode: bool = True) -> "Average":  # noqa: ARG002 - it only ever answers
        """Stay in inference mode, whatever a parent module is switched to."""
        return super().train(False)

    @torch.no_grad()
    def begin(self, backbone: Backbone, classifier: nn.Module | None) -> None:
        """Forget, and take the student as it is."""
        self.steps.zero_()
        for own, theirs in self._pairs(backbone, classifier):
            own.copy_(theirs)

    @torch.no_grad()
    def update(self, backbone: Backbone, classifier: nn.Module | None, decay: float) -> None:
        """own = kept own + (1 - kept) student, kept = min(decay, (1 + n) / (10 + n)) at step n."""
        self.steps += 1
        # On the device: to read the number would wait for it at every step.
        kept = ((1 + self.steps.double()) / (_BEGIN + self.steps)).clamp(max=decay)
        for own, theirs in self._pairs(backbone, classifier):
            if own.is_floating_point():
                own.lerp_(theirs, (1 - kept).to(own.dtype))
            else:
                own.copy_(theirs)

    def _pairs(
        self, backbone: Backbone, classifier: nn.Module | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter and buffer with the student's."""
        for own, theirs in ((self.backbone, backbone), (self.classifier, classifier)):
            if own is not None and theirs is not None:
                yield from zip(own.parameters(), theirs.parameters(), strict=True)
                yield from zip(own.buffers(), theirs.buffers(), strict=True)
