"""The features of a model on a plane, and images that it names correctly and wrongly."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kaizen_dist.evaluation.analysis import principal_components
from kaizen_dist.stream.shards import Split

EXAMPLES = 12
"""Images of either kind."""
POINTS = 1500
"""Images on the plane at most, evenly spaced."""


@dataclass(frozen=True)
class Example:
    """An image and its prediction."""

    image: bytes
    """Encoded, as stored in the shard."""
    name: str
    """The original one; "" where it is not at hand."""
    label: str
    answer: str
    confidence: float | None


@dataclass(frozen=True)
class Visualisation:
    """Of n images."""

    points: list[tuple[float, float]]
    """First two principal components of features [n, d]."""
    tasks: list[int]
    """[n]: the task of each."""
    explained: tuple[float, float]
    """Share of the features' variance along each of the two."""
    right: list[Example]
    wrong: list[Example]


def visualise(
    splits: dict[int, Split],
    features: Tensor,
    labels: Tensor,
    predicted: Tensor,
    confidence: Tensor | None,
    names: Sequence[str],
) -> Visualisation:
    """The features [n, d] of all labelled images of `splits` (by task, in order) on a plane, and
    the right and wrong predictions of highest confidence."""
    rows = [(t, row) for t, s in splits.items() for row in (s.labels >= 0).nonzero()[0].tolist()]
    some = evenly(len(rows), POINTS)
    points, explained = principal_components(features[some])
    true, answers = labels.tolist(), predicted.tolist()
    sure = [None] * len(rows) if confidence is None else confidence.tolist()
    order = sorted(range(len(rows)), key=lambda i: -(sure[i] or 0.0))

    def examples(right: bool) -> list[Example]:
        own = [i for i in order if (true[i] == answers[i]) is right]
        shown = [own[i] for i in chosen([true[i] for i in own])]
        images = [(splits[task], row) for task, row in (rows[i] for i in shown)]
        return [
            Example(split.read(row), split.name(row), names[true[i]], names[answers[i]], sure[i])
            for i, (split, row) in zip(shown, images, strict=True)
        ]

    return Visualisation(
        points=[(float(x), float(y)) for x, y in points.tolist()],
        tasks=[rows[i][0] for i in some],
        explained=explained,
        right=examples(True),
        wrong=examples(False),
    )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().tolist()


def chosen(kinds: Sequence[int], most: int = EXAMPLES) -> list[int]:
    """Positions in `kinds` (best first), at most `most`: the best of every kind, then the second
    best of every kind, and so on."""
    counts: Counter[int] = Counter()
    ranked = []
    for position, kind in enumerate(kinds):
        counts[kind] += 1
        ranked.append((counts[kind], position))
    return [position for _, position in sorted(ranked)[:most]]
