"""SimSiam: predict the other view's projection, with a stopped gradient (arXiv 2011.10566)."""

from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Section, Width
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp, mlp_to_norm
from kaizen_dist.learner.losses import negative_cosine, regression_loss
from kaizen_dist.learner.methods.base import Method, Pair


class SimSiamSettings(Section):
    """SimSiam's settings."""

    hidden: Width = 2048
    """Width of the projector's two hidden layers."""
    dim: Width = 2048
    """Width of a projection."""
    predictor_hidden: Width = 512
    """Width of the predictor's hidden layer."""


class SimSiam(Method):
    """The mean of both directions; distillation is predictive, as CaSSLe has it for BYOL."""

    Settings = SimSiamSettings

    def __init__(self, features: int, settings: SimSiamSettings) -> None:
        super().__init__()
        hidden, dim = settings.hidden, settings.dim
        self.projector = mlp_to_norm(features, hidden, hidden, dim)
        self.predictor = mlp(dim, settings.predictor_hidden, dim, batch_norm=True, bias=False)
        self.distill_dim = dim

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        forth = negative_cosine(self.predictor(z1), z2)
        return (forth + negative_cosine(self.predictor(z2), z1)) / 2

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return (regression_loss(p1, old1) + regression_loss(p2, old2)) / 2
