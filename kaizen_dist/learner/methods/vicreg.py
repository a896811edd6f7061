"""VICReg: alike views, varied dimensions, no covariance between them (arXiv 2105.04906)."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Section, Weight, Width
from kaizen_dist.learner.gather import Gather, gather_together
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import covariance, variance
from kaizen_dist.learner.methods.base import Method, Pair
from kaizen_dist.learner.precision import full_precision


class VICRegSettings(Section):
    """VICReg's settings."""

    hidden: Width = 2048
    """Width of the projector's two hidden layers."""
    dim: Annotated[Width, Field(ge=2)] = 2048
    """Width of a projection."""
    invariance: Weight = 25.0
    """Weight of the distance between the views."""
    variance: Weight = 25.0
    """Weight of the hinge on each dimension's standard deviation, summed over the views."""
    covariance: Weight = 1.0
    """Weight of the covariances, summed over the views."""


class VICReg(Method):
    """Statistics are over the global batch; distillation is the distance to the teacher."""

    Settings = VICRegSettings
    distill_weight = 25.0

    def __init__(self, features: int, settings: VICRegSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.projector = mlp(features, hidden, hidden, settings.dim, batch_norm=True)
        self.distill_dim = settings.dim
        self.settings = settings

    @override
    @full_precision
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        weights = self.settings
        all1, all2 = gather_together(gather, z1, z2)
        return (
            weights.invariance * F.mse_loss(z1, z2)
            + weights.variance * (variance(all1) + variance(all2))
            + weights.covariance * (covariance(all1) + covariance(all2))
        )

    @override
    @full_precision
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return (F.mse_loss(p1, old1) + F.mse_loss(p2, old2)) / 2
