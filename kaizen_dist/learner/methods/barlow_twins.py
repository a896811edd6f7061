"""Barlow Twins: the views' cross-correlation should be the identity (arXiv 2103.03230)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Rate, Section, Weight, Width
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import cross_correlation_loss
from kaizen_dist.learner.methods.base import Method, Pair


class BarlowTwinsSettings(Section):
    """Barlow Twins' settings; published with lr 0.3 and weight decay 1e-4 (CaSSLe)."""

    hidden: Width = 2048
    """Width of the projector's two hidden layers."""
    dim: Annotated[Width, Field(ge=2)] = 2048
    """Width of a projection."""
    off_diagonal: Weight = 5e-3
    """Weight of the correlations off the diagonal, in the loss and in distillation."""
    scale: Rate = 0.1
    """Factor of the loss and of distillation."""


class BarlowTwins(Method):
    """Correlations are over the global batch; distillation decorrelates student and teacher."""

    Settings = BarlowTwinsSettings

    def __init__(self, features: int, settings: BarlowTwinsSettings) -> None:
        super().__init__()
        hidden = settings.hidden
        self.projector = mlp(features, hidden, hidden, settings.dim, batch_norm=True)
        self.distill_dim = settings.dim
        self.off_diagonal = settings.off_diagonal
        self.scale = settings.scale

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        return cross_correlation_loss(z1, z2, self.off_diagonal, self.scale, gather)

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        first = cross_correlation_loss(p1, old1, self.off_diagonal, self.scale, gather)
        second = cross_correlation_loss(p2, old2, self.off_diagonal, self.scale, gather)
        return (first + second) / 2
