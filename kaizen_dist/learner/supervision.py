"""Labels that teach the backbone: a supervised branch through an MLP with BatchNorm.

The MLP stands between the backbone and what the labels ask for, so that features stay general where
plain supervision makes them forget ("Revisiting Supervision for Continual Representation Learning",
arXiv 2311.13321). It is a training aid: no export has it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.config.schema import Config
from kaizen_dist.learner.first_weights import class_rows, rows_after
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import (
    classification_loss,
    contrastive_distillation,
    supervised_contrastive,
    without_classes,
)
from kaizen_dist.learner.methods.base import Pair
from kaizen_dist.learner.precision import full_precision


class ClassDirections(nn.Module):
    """A direction a class; logits are cosines over a temperature, of rows [..., d]."""

    def __init__(self, width: int, classes: int, seed: int, temperature: float) -> None:
        super().__init__()
        self.seed, self.temperature = seed, temperature
        self.weight = nn.Parameter(torch.empty(classes, width))
        with torch.no_grad():
            self.weight.copy_(class_rows(seed, 0, classes, width)[:, :-1])

    def grow(self, classes: int) -> None:
        """Make place for `classes` classes; a class's first direction follows from its number."""
        own = self.weight.detach()
        new = rows_after(own, self.seed, classes)[:, :-1]
        self.weight = nn.Parameter(torch.cat([own, new]), self.weight.requires_grad)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(x, dim=-1), F.normalize(self.weight.to(x.dtype), dim=-1))
        return cosines / self.temperature


class SupervisedBranch(nn.Module):
    """The branch: projector, class directions, and the predictor of its distillation.

    The weights are drawn where it is built; the directions are functions of the seed.
    """

    def __init__(self, features: int, config: Config, classes: int) -> None:
        super().__init__()
        settings = self.settings = config.supervise
        width, hidden = settings.dim, settings.hidden
        self.projector = mlp(features, hidden, width, batch_norm=True)
        self.directions: ClassDirections | None = None
        if settings.loss == "cross_entropy":
            seed = config.train.seed
            self.directions = ClassDirections(width, classes, seed, settings.temperature)
        self.predictor: nn.Module | None = None
        if config.distill.features:
            self.predictor = mlp(width, hidden, width, batch_norm=True)
        self.active = True

    def begin_task(self, first: bool, distilled: bool) -> None:
        """Learn in this task or not, with a teacher to be `distilled` or none."""
        self.active = first or self.settings.tasks == "all"
        self.requires_grad_(self.active)
        if self.predictor is not None:
            self.predictor.requires_grad_(self.active and distilled)

    def grow(self, classes: int) -> None:
        """Make place for `classes` classes."""
        if self.directions is not None:
            self.directions.grow(classes)

    def learn(
        self,
        z: Pair,
        labels: Tensor,
        unseen: Tensor | None,
        adjust: Callable[[Tensor], Tensor],
        gather: Gather,
    ) -> Tensor:
        """The weighted loss of projections [n, d] of both views with `labels` int64 [n], -1 =
        unlabelled; `unseen` [C] masks classes that are not there yet, and `adjust` balances the
        logits [2, n, C] of cross-entropy."""
        if self.directions is None:
            loss = supervised_contrastive(*z, labels, self.settings.temperature, gather)
        else:
            logits = adjust(without_classes(self.directions(torch.stack(z)), unseen))
            loss = classification_loss(logits, labels, gather) / 2
        return self.settings.weight * loss

    def keep(self, z: Pair, old: Pair | Tensor, gather: Gather) -> Tensor:
        """The weighted distillation of projections [n, d] of both views, against the
        teacher's."""
        assert self.predictor is not None
        p = self.predictor(z[0]), self.predictor(z[1])
        kept = contrastive_distillation(
            *p, old[0], old[1], self.settings.distill_temperature, gather
        )
        return self.settings.distill_weight * kept
