"""MoCo v3: tell an image's key from all others in the batch (arXiv 2104.02057)."""

from torch import Tensor
from typing_extensions import override

from kaizen_dist.config.base import Section, Share, Temperature, Width
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp_to_norm
from kaizen_dist.learner.losses import contrastive_distillation, in_batch_info_nce
from kaizen_dist.learner.methods.base import Method, Pair


class MoCoV3Settings(Section):
    """MoCo v3's settings, as published for vision transformers."""

    hidden: Width = 4096
    """Width of the projector's two hidden layers."""
    dim: Width = 256
    """Width of a projection."""
    predictor_hidden: Width = 4096
    """Width of the predictor's hidden layer."""
    temperature: Temperature = 0.2
    """Published for ResNet-50: 1.0."""
    tau_start: Share = 0.99
    """Share of its own weights the momentum network keeps at a task's first step, ..."""
    tau_end: Share = 1.0
    """... and at its last."""
    distill_temperature: Temperature = 0.2
    """Temperature of the distillation."""


class MoCoV3(Method):
    """Both directions are summed; negatives are the batch's own keys; distillation is contrastive.

    For vision transformers `model.frozen_patch` belongs to it.
    """

    Settings = MoCoV3Settings
    momentum = True

    def __init__(self, features: int, settings: MoCoV3Settings) -> None:
        super().__init__()
        hidden, dim = settings.hidden, settings.dim
        self.projector = mlp_to_norm(features, hidden, hidden, dim)
        self.predictor = mlp_to_norm(dim, settings.predictor_hidden, dim)
        self.distill_dim = dim
        self.tau_range = (settings.tau_start, settings.tau_end)
        self.temperature = settings.temperature
        self.distill_temperature = settings.distill_temperature

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        assert keys is not None
        queries = self.predictor(z1), self.predictor(z2)
        return in_batch_info_nce(*queries, *keys, self.temperature, gather)

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return contrastive_distillation(p1, p2, old1, old2, self.distill_temperature, gather)
