"""SimCLR: tell the two views of an image from all others in the batch (arXiv 2002.05709)."""

from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Section, Temperature, Width
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.losses import contrastive_distillation, nt_xent
from kaizen_dist.learner.methods.base import Method, Pair


class SimCLRSettings(Section):
    """SimCLR's settings."""

    hidden: Width = 4096
    """Width of the projector's hidden layer."""
    dim: Width = 256
    """Width of a projection."""
    temperature: Temperature = 0.1
    distill_temperature: Temperature = 0.2
    """Temperature of the distillation."""


class SimCLR(Method):
    """NT-Xent over the global batch; distillation is contrastive as well."""

    Settings = SimCLRSettings

    def __init__(self, features: int, settings: SimCLRSettings) -> None:
        super().__init__()
        self.projector = mlp(features, settings.hidden, settings.dim, batch_norm=False)
        self.distill_dim = settings.dim
        self.temperature = settings.temperature
        self.distill_temperature = settings.distill_temperature

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        return nt_xent(z1, z2, self.temperature, gather)

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return contrastive_distillation(p1, p2, old1, old2, self.distill_temperature, gather)
