"""A deployed model as a module: normalised images in, probabilities and features out.

It is built from an export's description and loads its weights by plain names, without the training
code and without pickle.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import read_bytes
from kaizen_dist.learner.backbone import Backbone, build_backbone
from kaizen_dist.learner.heads import UnitLinear, mlp
from kaizen_dist.models.description import Description, read_description

BACKBONE = "model.safetensors"
"""The backbone's weights, by the names that torchvision (or timm) gives them."""
CLASSIFIER = "classifier.safetensors"
"""The classifier's, by the names of an `nn.Sequential` of Linear, ReLU, Linear; or those of one
Linear (`Network.head`)."""
_HEADER_LIMIT: Final = 1 << 20
"""Bytes of names and shapes before the weights in a file."""
_SIZE_LIMIT: Final = 8 << 30
"""Bytes of the largest file of weights, whatever model.json says: a ViT-H has 2.5e9."""


class DeployedModel(nn.Module):
    """The student after a task, in `eval()` mode, without gradients.

    `backbone` and `classifier` are state dicts by plain names; `classifier` is empty where the
    description has none.

    Raises:
        UsageError: the description names an unknown backbone.
        ValueError: the weights do not fit the description; the message lists the names.
    """

    unseen: Tensor

    def __init__(
        self,
        description: Description,
        backbone: Mapping[str, Tensor],
        classifier: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.description = description
        self.backbone, self.classifier = _without_weights(description)
        _fill(self.backbone.network, backbone)
        if _holds_more_than_weights(self.backbone):
            # Only now: the weights are as many as the network that is made has.
            with torch.random.fork_rng(devices=[]):
                self.backbone = build_backbone(description.network, description.view.size)
            _fill(self.backbone.network, backbone)
        if self.classifier is not None:
            _fill(self.classifier, classifier)
        unseen = torch.ones(len(description.classes), dtype=torch.bool)
        unseen[list(description.seen)] = False
        self.register_buffer("unseen", unseen, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [n, C], features [n, f]) of plain views [n, 3, s, s].

        A class of a later task has probability 0, as in a run's evaluation.

        Raises:
            UsageError: the run had no classifier.
        """
        features = self.backbone(images)
        if self.classifier is None:
            raise UsageError(
                "this model has no classifier (the run had classifier.enabled=false); it gives "
                "features only, and its README.md shows how to get them"
            )
        logits = self.classifier(features).masked_fill(self.unseen, -torch.inf)
        return logits.softmax(1), features


def _without_weights(description: Description) -> tuple[Backbone, nn.Module | None]:
    """Backbone and classifier on the meta device: all weights are given, none need be drawn."""
    network, classes = description.network, len(description.classes)
    with torch.device("meta"):
        backbone = build_backbone(network, description.view.size)
        if backbone.features != network.features:
            raise ValueError(
                f"features: {network.backbone} has {backbone.features}, not {network.features}"
            )
        if network.head == "means":
            return backbone, UnitLinear(network.features, classes)
        if network.hidden is None:
            return backbone, None
        return backbone, mlp(network.features, network.hidden, classes, batch_norm=False)


def _holds_more_than_weights(module: nn.Module) -> bool:
    """Whether there are buffers that no file holds, such as tables of positions: they are computed
    as a module is made."""
    return not {name for name, _ in module.named_buffers()} <= module.state_dict().keys()


def _fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load all weights of a module. Raises ValueError naming those that do not fit."""
    kinds = {name: own.dtype for name, own in module.state_dict().items()}
    for name in kinds.keys() & weights.keys():
        if weights[name].dtype != kinds[name]:
            raise ValueError(f"{name}: holds {weights[name].dtype}, not {kinds[name]}")
        if not weights[name].isfinite().all():
            raise ValueError(f"{name}: holds values that are not finite (NaN or infinity)")
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def load_model(folder: Path) -> DeployedModel:
    """The model that `kaizen-dist export` wrote into `folder`.

    Raises:
        DataError: something is missing, damaged, or does not fit together; it names the file.
    """
    description = read_description(folder)
    try:
        networks = _without_weights(description)
        backbone, classifier = (
            {} if module is None else _weights(folder, name, description, module)
            for name, module in zip((BACKBONE, CLASSIFIER), networks, strict=True)
        )
        return DeployedModel(description, backbone, classifier)
    except (UsageError, ValueError) as error:
        raise DataError(
            f"{folder}: weights and model.json do not fit together; export the model again\n{error}"
        ) from None


def _weights(
    folder: Path, name: str, description: Description, module: nn.Module
) -> dict[str, Tensor]:
    """The tensors of a file; no more of it is read than `module` has weights."""
    path = folder / name
    most = sum(own.numel() * own.element_size() for own in module.state_dict().values())
    try:
        data = read_bytes(path, min(most + _HEADER_LIMIT, _SIZE_LIMIT))
        if hashlib.sha256(data).hexdigest() != description.files.get(name):
            raise DataError(
                f"{path}: its bytes are not those that were exported; export the model again"
            )
        return load(data)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; export the model again") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); export the model again") from None
