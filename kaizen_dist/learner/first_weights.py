"""First weights: functions of the seed, of what a part is for, and of a class's number."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kaizen_dist.common.rng import key, uniform
from kaizen_dist.config.schema import Config
from kaizen_dist.learner.backbone import build_backbone

_ROWS = 1024


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Draw the first weights of one part, and leave torch's generator as it was."""
    high, low = key("weights", seed, part)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(high << 32 | low)
        yield


def class_rows(seed: int, first: int, last: int, width: int) -> Tensor:
    """First weights and bias [last - first, width + 1] of a classifier's outputs for some classes.

    A class's row is a function of the seed and its number, whenever it comes; distributed as torch
    initialises a linear layer of this width: uniform within 1 / sqrt(width) of 0.
    """
    bound, rows = 1 / math.sqrt(width), []
    for start in range(first, last, _ROWS):  # the random numbers need ten times a row's memory
        numbers = np.arange(start, min(start + _ROWS, last))
        drawn = uniform(key("class row", seed), width + 1, numbers)
        rows.append(torch.from_numpy((2 * drawn - 1) * bound).float())
    return torch.cat(rows) if rows else torch.empty(0, width + 1)


def rows_after(own: Tensor, seed: int, classes: int) -> Tensor:
    """`class_rows` of the classes that come after the rows [c, width] that there are."""
    if own.is_meta:
        return own.new_empty(classes - len(own), own.shape[1] + 1)
    return class_rows(seed, len(own), classes, own.shape[1]).to(own)


def grow_rows(layer: nn.Linear, seed: int, classes: int) -> None:
    """Give a linear layer outputs for `classes` classes, in place; those it has stay."""
    own = layer.weight.detach()
    new = rows_after(own, seed, classes)
    weight, bias = new[:, :-1], new[:, -1]
    layer.weight = nn.Parameter(torch.cat([own, weight]))
    layer.bias = nn.Parameter(torch.cat([layer.bias.detach(), bias]))
    layer.out_features = classes


class UntrainedBackbone(nn.Module):
    """The backbone of a configuration with its first weights, to compare the learner's with."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        with seeded(config.train.seed, "backbone"):
            self.backbone = build_backbone(config.model, config.views.size)

    def embed(self, images: Tensor) -> Tensor:
        """Features [n, f] of images [n, 3, s, s]."""
        features: Tensor = self.backbone(images)
        return features
