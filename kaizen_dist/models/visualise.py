"""What a model makes of images, to be looked at: its features on a plane, and images that it
names right and wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXAMPLES = 12
"""Images of either kind."""
POINTS = 1500
"""At most so many images on the plane, evenly taken."""


@dataclass(frozen=True)
class Example:
    """An image and what it was taken for."""

    image: bytes
    """Encoded, as it lies in the shard."""
    label: str
    answer: str
    confidence: float | None


@dataclass(frozen=True)
class Portrait:
    """Beside the figures of an examination."""

    points: list[tuple[float, float]]
    """First two principal components of features [n, d]."""
    tasks: list[int]
    """[n]: the task of each."""
    explained: tuple[float, float]
    """Share of the features' variance that lies along each of the two."""
    right: list[Example]
    wrong: list[Example]


def principal_components(features: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Features [n, d] on their first two principal axes, [n, 2] float64, and the share of the
    variance along each. An axis points where its largest entry is positive, so that the same
    features give the same picture."""
    centred = features.double().cpu()
    centred = centred - centred.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, [-1, -2]]
    largest = axes.abs().argmax(dim=0)
    axes = axes * axes[largest, [0, 1]].sign()
    total = values.clamp(min=0).sum().clamp(min=torch.finfo(torch.float64).tiny)
    first, second = (values[[-1, -2]].clamp(min=0) / total).tolist()
    return centred @ axes, (first, second)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, as far apart as can be."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def chosen(kinds: Sequence[int], most: int = EXAMPLES) -> list[int]:
    """Places in `kinds` (best first), at most `most`: the best of every kind, then the second
    best of every kind, and so on."""
    turns: dict[int, int] = {}
    ranked = []
    for place, kind in enumerate(kinds):
        turns[kind] = turns.get(kind, 0) + 1
        ranked.append((turns[kind], place))
    return [place for _, place in sorted(ranked)[:most]]
