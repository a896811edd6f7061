"""MoCo v2+: tell an image's key from a queue of past keys (arXiv 2003.04297)."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from kaizen_dist.config.base import Section, Share, Temperature, Width
from kaizen_dist.learner.gather import Gather, gather_together
from kaizen_dist.learner.heads import Normalize, mlp
from kaizen_dist.learner.losses import contrastive_distillation, info_nce
from kaizen_dist.learner.methods.base import Method, Pair


class MoCoV2PlusSettings(Section):
    """MoCo v2+'s settings."""

    hidden: Width = 2048
    """Width of the projector's hidden layer."""
    dim: Width = 256
    """Width of a projection."""
    temperature: Temperature = 0.2
    queue: int = Field(65_536, ge=1, le=2**22)
    """Past keys of each view that serve as negatives."""
    tau_start: Share = 0.99
    """Share of its own weights the momentum network keeps at a task's first step, ..."""
    tau_end: Share = 0.999
    """... and at its last."""
    distill_temperature: Temperature = 0.2
    """Temperature of the distillation."""


class MoCoV2Plus(Method):
    """The mean of both directions; distillation is contrastive, on the normalised queries."""

    Settings = MoCoV2PlusSettings
    momentum = True

    queue: Tensor
    """[2, K, d]: the keys of each view, the same on all ranks."""
    pointer: Tensor
    """int64 scalar: where in the queue the next key goes, which is where the oldest one is."""

    def __init__(self, features: int, settings: MoCoV2PlusSettings) -> None:
        super().__init__()
        head = mlp(features, settings.hidden, settings.dim, batch_norm=False)
        self.projector = nn.Sequential(head, Normalize())
        self.distill_dim = settings.dim
        self.tau_range = (settings.tau_start, settings.tau_end)
        self.temperature = settings.temperature
        self.distill_temperature = settings.distill_temperature
        noise = torch.randn(2, settings.queue, settings.dim)
        self.register_buffer("queue", F.normalize(noise, dim=-1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @override
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        assert keys is not None
        key1, key2 = keys
        # The backward pass needs the negatives as they are now, and `remember` comes before it.
        negatives1, negatives2 = self.queue.clone()
        forth = info_nce(z1, key2, negatives2, self.temperature)
        return (forth + info_nce(z2, key1, negatives1, self.temperature)) / 2

    @override
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        return contrastive_distillation(p1, p2, old1, old2, self.distill_temperature, gather)

    @override
    @torch.no_grad()
    def remember(self, keys: Pair, gather: Gather) -> None:
        """Replace the oldest keys of the queue by those of the global batch."""
        size = self.queue.shape[1]
        new = torch.stack([k[-size:] for k in gather_together(gather, *keys)])
        slots = (self.pointer + torch.arange(new.shape[1], device=new.device)) % size
        self.queue.index_copy_(1, slots, new)
        self.pointer.add_(new.shape[1]).remainder_(size)
