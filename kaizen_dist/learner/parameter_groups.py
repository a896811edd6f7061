"""What an optimizer trains in a task, in groups with a learning rate and a weight decay each.

Heads that begin with random weights on a backbone that does not would spoil it by their first
gradients: `optim.warmup_heads` lets them learn alone first. `optim.layer_decay` lets layers near
the images, which are the most general, move less.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from kaizen_dist.config.learning import OptimConfig
from kaizen_dist.learner.backbone import Backbone

BACKBONE = "backbone"
"""Role of the groups that a warm-up of the heads leaves alone."""


def parameter_groups(
    learner: nn.Module, backbone: Backbone, classifier: nn.Module | None, optim: OptimConfig
) -> list[dict[str, Any]]:
    """`model`, then the backbone's own where it is not treated as the rest, then `classifier` where
    there is one, which has a learning rate of its own and no weight decay."""
    heads = [] if classifier is None else list(classifier.parameters())
    own = list(_by_rate(backbone, optim))
    apart = {*heads, *(p for _, parameters in own for p in parameters)}
    model = [p for p in learner.parameters() if p.requires_grad and p not in apart]
    groups: list[dict[str, Any]] = [{"role": "model", "params": model}]
    groups += [{"role": BACKBONE, "params": of, "lr_scale": scale} for scale, of in own]
    groups = [group | {"weight_decay": optim.weight_decay} for group in groups]
    if heads:
        groups.append({"role": "classifier", "params": heads, "weight_decay": 0.0})
    return groups


def _by_rate(backbone: Backbone, optim: OptimConfig) -> Iterator[tuple[float, list[Tensor]]]:
    """The backbone's parameters by their share of the learning rate, from input to output; none
    where nothing tells them from the rest of the model."""
    if optim.layer_decay is None and optim.warmup_heads == 0:
        return
    numbers, decay = backbone.layers(), optim.layer_decay or 1.0
    above = 1 + max(numbers.values())
    scaled: dict[float, list[Tensor]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            scaled.setdefault(decay ** (above - numbers[name]), []).append(parameter)
    yield from sorted(scaled.items(), key=lambda item: item[0])
