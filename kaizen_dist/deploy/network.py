"""A deployed model as a module: normalised images in, probabilities and features out.

It is built from an export's description and given its weights by plain names; nothing of the
training is needed, and nothing is unpickled.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kaizen_dist.deploy.description import Description, Network, read_description
from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.files import file_sha256
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.learner.heads import UnitLinear, mlp

BACKBONE = "model.safetensors"
"""The backbone's weights, by the names that torchvision gives them."""
CLASSIFIER = "classifier.safetensors"
"""The classifier's, by the names of an `nn.Sequential` of Linear, ReLU, Linear; or those of one
Linear (`Network.head`)."""


class DeployedModel(nn.Module):
    """The student after a task, in `eval()` mode, without gradients.

    `backbone` and `classifier` are state dicts by plain names; `classifier` is empty where the
    description has none.

    Raises:
        UsageError: the description names a backbone that there is not.
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
        count = len(description.classes)
        # All weights are given: none need be drawn.
        with torch.device("meta"):
            self.backbone = build_backbone(description.network, description.view.size)
            self.classifier = _head(description.network, count)
        try:
            self.backbone.network.load_state_dict(backbone, assign=True)
            if self.classifier is not None:
                self.classifier.load_state_dict(classifier, assign=True)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        unseen = torch.ones(count, dtype=torch.bool)
        unseen[list(description.seen)] = False
        self.register_buffer("unseen", unseen, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(probabilities [n, C], features [n, f]) of plain views [n, 3, s, s].

        A class that had not come up by this task has probability 0, as in a run's evaluation.

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


def _head(network: Network, classes: int) -> nn.Module | None:
    if network.head == "means":
        return UnitLinear(network.features, classes)
    if network.hidden is None:
        return None
    return mlp(network.features, network.hidden, classes, batch_norm=False)


def load_model(folder: Path) -> DeployedModel:
    """The model that `kaizen-dist export` wrote into `folder`.

    Raises:
        DataError: something is missing, damaged, or does not fit together; it names the file.
    """
    description = read_description(folder)
    backbone = _weights(folder, BACKBONE, description)
    answers = description.network.answers
    classifier = _weights(folder, CLASSIFIER, description) if answers else {}
    try:
        return DeployedModel(description, backbone, classifier)
    except (UsageError, ValueError) as error:
        raise DataError(
            f"{folder}: weights and model.json do not fit together; export the model again\n{error}"
        ) from None


def _weights(folder: Path, name: str, description: Description) -> dict[str, Tensor]:
    path = folder / name
    try:
        if file_sha256(path) != description.files.get(name):
            raise DataError(
                f"{path}: its bytes are not those that were exported; export the model again"
            )
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; export the model again") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); export the model again") from None
