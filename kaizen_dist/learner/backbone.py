"""Backbones: torchvision's residual networks and vision transformers by name, without a head; those
of timm and of other packages.

An architecture and the side of a view come in, a module from images to features goes out.
Weights are always random: nothing is downloaded.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import ClassVar, Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import (
    EncoderBlock,
    VisionTransformer,
    interpolate_embeddings,
)

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.registry import Registry

CIFAR_STEM_UP_TO = 64
"""Largest side in pixels for which `model.stem: auto` means the CIFAR stem."""

SMALL_RESNETS = {"resnet10": [1, 1, 1, 1], "resnet14": [1, 1, 2, 2]}
"""Blocks in each stage of the residual networks that torchvision lacks, for laptops."""

VITS = {
    "n": (6, 3, 96, 384),
    "ti": (12, 3, 192, 768),
    "s": (12, 6, 384, 1536),
    "b": (12, 12, 768, 3072),
    "l": (24, 16, 1024, 4096),
    "h": (32, 16, 1280, 5120),
}
"""Layers, heads, width and MLP width (arXiv 2010.11929, table 1; ti and s: 2012.12877); n is
for laptops."""

COMMON_PATCHES = (2, 4, 8, 14, 16, 32)

TIMM = "timm/"
"""Before the name of a model of timm's."""

_POSITIONS = "encoder.pos_embedding"

Stem: TypeAlias = Literal["auto", "cifar", "imagenet"]


class Architecture(Protocol):
    """What decides a backbone: a configuration's `model`, or what an export says of itself."""

    @property
    def backbone(self) -> str: ...
    @property
    def stem(self) -> Stem: ...
    @property
    def stem_padding(self) -> int: ...


class Backbone(nn.Module):
    """A network from images [n, 3, s, s] to features [n, `features`].

    `layout` is the memory format in which its activations lie. Convolutions and what stands
    between them are faster channels-last, and one image laid out so makes every layer after it
    follow; weights stay as they are, so that states and exports know nothing of it.

    A subclass is a backbone of its own, constructed as `Subclass(config.model, image_size)`.
    """

    block_types: ClassVar[tuple[type[nn.Module], ...]] = (BasicBlock, Bottleneck, EncoderBlock)
    """Repeated parts of the network, which engines recompute and cut over ranks one by one."""

    def __init__(
        self,
        network: nn.Module,
        features: int,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.network = network
        self.features = features
        self.layout = layout
        self.replayed = False
        """Whether a CUDA graph computes the network, the next pass of which takes the same
        memory again."""
        self.frozen = False
        """Whether it stays as it is while heads on it learn: no gradients, no batch statistics."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.network(images.contiguous(memory_format=self.layout))
        return features.clone() if self.replayed else features

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(mode and not self.frozen)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts of the network, from input to output."""
        return [m for m in self.network.modules() if isinstance(m, self.block_types)]

    def layers(self) -> dict[str, int]:
        """The layer of each parameter by name, from 0 at the input: what comes before the blocks,
        each block, and with it what follows until the next."""
        numbers = {
            id(p): number for number, b in enumerate(self.blocks(), 1) for p in b.parameters()
        }
        found, last = {}, 0
        for name, parameter in self.named_parameters():
            found[name] = last = numbers.get(id(parameter), last)
        return found

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of such a network, with those resized that depend on the views' size: position
        embeddings of a vision transformer."""
        network, positions = self.network, weights.get(_POSITIONS)
        if not isinstance(network, VisionTransformer) or positions is None:
            return dict(weights)
        own = network.encoder.pos_embedding
        if positions.ndim != 3 or positions.shape[2] != own.shape[2]:
            return dict(weights)
        if positions.shape == own.shape:
            return dict(weights)
        try:
            return dict(
                interpolate_embeddings(network.image_size, network.patch_size, dict(weights))
            )
        except ValueError:  # of patches that are no square
            return dict(weights)

    def patch_projection(self) -> nn.Module | None:
        """What makes a vector of a patch; None of a network that has no patches."""
        found = getattr(self.network, "conv_proj", None)
        return found if isinstance(found, nn.Module) else None


BACKBONES: Final = Registry("model.backbone", "kaizen_dist.backbones", Backbone)
"""Backbones of other packages."""


def build_backbone(config: Architecture, image_size: int) -> Backbone:
    """The backbone `config.backbone` for square images with sides of `image_size` pixels.

    Raises:
        UsageError: an unknown name (with the nearest known ones), or a stem or patch that does
            not fit.
    """
    resnets = _resnets()
    if config.backbone in resnets:
        return _resnet(resnets[config.backbone](), config, image_size)
    if match := re.fullmatch(rf"vit_({'|'.join(VITS)})_([1-9]\d?)", config.backbone):
        return _vit(match[1], int(match[2]), config, image_size)
    if config.backbone.startswith(TIMM):
        # By name: it is a `Backbone` of this module's, and few runs need it.
        made: Backbone = import_module("kaizen_dist.learner.timm_backbone").TimmBackbone(
            config, image_size
        )
        return made
    known = [*resnets, *(f"vit_{size}_{patch}" for size in VITS for patch in COMMON_PATCHES)]
    other: Callable[[Architecture, int], Backbone] = BACKBONES.find(config.backbone, known)
    return other(config, image_size)


def _resnets() -> dict[str, Callable[[], ResNet]]:
    """Makers of all residual networks by name."""
    small = {name: partial(ResNet, BasicBlock, blocks) for name, blocks in SMALL_RESNETS.items()}
    builders = {name: models.get_model_builder(name) for name in models.list_models(models)}
    ours = models.resnet.__name__
    return {**small, **{name: make for name, make in builders.items() if make.__module__ == ours}}


def _resnet(network: ResNet, config: Architecture, image_size: int) -> Backbone:
    features = network.fc.in_features
    network.fc = nn.Identity()
    if resolve_stem(config.stem, image_size) == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=config.stem_padding, bias=False)
        network.maxpool = nn.Identity()
    return Backbone(network, features, torch.channels_last)


def resolve_stem(stem: Stem, image_size: int) -> Literal["cifar", "imagenet"]:
    """The stem that a residual network gets for square images of this side in pixels."""
    if stem == "auto":
        return "cifar" if image_size <= CIFAR_STEM_UP_TO else "imagenet"
    return stem


def _vit(size: str, patch: int, config: Architecture, image_size: int) -> Backbone:
    if config.stem != "auto":
        raise UsageError(
            f"model.stem: {config.stem!r} is for residual networks and does not fit "
            f"model.backbone={config.backbone}, whose stem is its patch; use stem: auto"
        )
    if image_size % patch:
        fitting = [str(p) for p in range(2, image_size) if image_size % p == 0]
        raise UsageError(
            f"model.backbone: {config.backbone} cuts patches of {patch} px, which do not fill "
            f"views.size={image_size}; patches that do: {', '.join(fitting) or 'none'}"
        )
    layers, heads, width, mlp_width = VITS[size]
    network = VisionTransformer(image_size, patch, layers, heads, width, mlp_width, num_classes=1)
    network.heads = nn.Identity()
    return Backbone(network, width)


def freeze_patch(backbone: Backbone) -> None:
    """Keep a vision transformer's patch projection at the values it has (`model.frozen_patch`).

    Raises:
        UsageError: the network has none.
    """
    patch = backbone.patch_projection()
    if patch is None:
        raise UsageError(
            f"model.frozen_patch: {type(backbone.network).__name__} has no patches; set it to "
            "false, or take a vision transformer"
        )
    patch.requires_grad_(False)
