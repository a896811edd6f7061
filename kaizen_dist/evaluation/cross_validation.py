"""Shrinkage and temperature of a classifier of class means, by cross-validation.

The likelihood of images that were held out of the means decides both, as it decides a temperature
in Guo et al. (arXiv 1706.04599). The images are a task's own: replayed ones were learnt too often
to show how sure a classifier may be, and validation images are those that results are told on.
"""

import copy
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.learner.ncm import ClassMeans, FeatureSums
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import SplitRow

SHRINKAGES: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_FOLDS: Final = 5
_LEAST: Final = 100
"""Of fewer images none is held out."""
DEFAULT: Final = (0.2, 2.0)
"""Shrinkage and temperature then: those that CIFAR-10's tasks chose."""
_HALVINGS: Final = 50
_WIDEST: Final = 100.0
"""Temperatures are between this and its inverse."""


class Sample(NamedTuple):
    """Features [n, d] and labels [n] of images, a part of which at a time is held out."""

    features: Tensor
    labels: Tensor


def choose_sample(
    splits: Sequence[Split], most: int
) -> tuple[list[SplitRow], list[tuple[Split, NDArray[np.int64]]]]:
    """(images to be held out, the other rows of each split) of all labelled images: at most `most`
    of them, evenly spaced."""
    labelled = [np.flatnonzero(split.labels >= 0) for split in splits]
    total = sum(map(len, labelled))
    if min(total, most) < _LEAST:
        return [], list(zip(splits, labelled, strict=True))
    chosen = np.zeros(total, dtype=bool)
    chosen[np.linspace(0, total - 1, min(total, most)).astype(np.int64)] = True
    held, rest, begin = [], [], 0
    for split, rows in zip(splits, labelled, strict=True):
        out = chosen[begin : begin + len(rows)]
        held += [(split, row) for row in rows[out].tolist()]
        rest.append((split, rows[~out]))
        begin += len(rows)
    return held, rest


def fitted(before: ClassMeans, known: FeatureSums, held: Sample) -> tuple[float, float]:
    """(shrinkage, temperature) by which each fifth of `held` is likeliest to the class means
    `before` joined by all images of `known` but that fifth.

    An image that is the only one of its class is left out.
    """
    said: dict[float, list[Tensor]] = {candidate: [] for candidate in SHRINKAGES}
    truth = []
    for fold in range(_FOLDS):
        features, labels = (part[fold::_FOLDS] for part in held)
        means = copy.deepcopy(before)
        means.add(known.plus(FeatureSums.of(features, labels, len(means.counts)), -1))
        met = means.counts[labels] > 0
        truth.append(labels[met])
        for candidate in SHRINKAGES:
            means.settle(candidate)
            said[candidate].append(means(features[met]).double())
    if not sum(map(len, truth)):
        return DEFAULT
    labels, tried = torch.cat(truth), []
    for candidate in SHRINKAGES:
        logits = torch.cat(said[candidate])
        temperature = best_temperature(logits, labels)
        loss = F.cross_entropy(logits / temperature, labels).item()
        tried.append((loss, candidate, temperature))
    _, best, temperature = min(tried)
    return best, temperature


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which labels [n] are likeliest by float64 logits [n, C].

    The loss is convex in its inverse, whose derivative is the mean over the images of the expected
    logit less that of the label: halving finds where it is 0.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = -math.log(_WIDEST), math.log(_WIDEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1)
        # Expected less than the label's: surer would be likelier.
        if (expected - own).mean() < 0:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)
