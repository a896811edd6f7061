"""BYOL: predict the momentum network's projection of the other view (arXiv 2006.07733)."""

from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Section, Share, Width
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import regression_loss
from kaizen_dist.learner.methods.base import Method, Pair


class BYOLSettings(Section):
    """BYOL's settings."""

    hidden: Width = 4096
    """Width of the projector's hidden layer."""
    dim: Width = 256
    """Width of a projection."""
    predictor_hidden: Width = 4096
    """Width of the predictor's hidden layer."""
    tau_start: Share = 0.99
    """Share of its own weights the momentum network keeps at a task's first step, ..."""
    tau_end: Share = 1.0
    """... and at its last."""


class BYOL(Method):
    """Both directions are summed; distillation is the same regression."""

    Settings = BYOLSettings
    momentum = True

    def __init__(self, features: int, settings: BYOLSettings) -> None:
        super().__init__()
        self.projector = mlp(features, settings.hidden, settings.dim, batch_norm=True)
        self.predictor = mlp(settings.dim, settings.predictor_hidden, settings.dim, batch_norm=True)
        self.distill_dim = settings.dim
        self.tau_range = (settings.tau_start, settings.tau_end)

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        assert keys is not None
        key1, key2 = keys
        forth = regression_loss(self.predictor(z1), key2)
        return forth + regression_loss(self.predictor(z2), key1)

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return (regression_loss(p1, old1) + regression_loss(p2, old2)) / 2
