"""Shrinkage and temperature of a classifier of class means, by images that were held out of them.

The likelihood of held-out images decides both, as it decides a temperature in Guo et al. (arXiv
1706.04599). The images are a task's own: those that are replayed were learnt too often to be told
from by how sure a classifier may be, and the validation images are those that results are told on.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.learner.ncm import ClassMeans
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import SplitRow

SHRINKAGES: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_SHARE: Final = 5
"""One image of so many is held out ..."""
_LEAST: Final = 20
"""... where these are so many at least."""
_DEFAULT: Final = (0.2, 2.0)
"""Shrinkage and temperature where no image can be held out: those that CIFAR-10's tasks chose."""
_HALVINGS: Final = 50
_WIDEST: Final = 100.0
"""Temperatures are between this and its inverse."""


class HeldOut(NamedTuple):
    """Features [n, d] and labels [n] of images that a classifier was not fitted on."""

    features: Tensor
    labels: Tensor


def hold_out(
    splits: Sequence[Split], most: int
) -> tuple[list[SplitRow], list[tuple[Split, NDArray[np.int64]]]]:
    """(held-out images, the other rows of each split) of all labelled images, evenly spaced; at
    most `most` are held out."""
    labelled = [np.flatnonzero(split.labels >= 0) for split in splits]
    total = sum(map(len, labelled))
    count = min(total // _SHARE, most)
    if count < _LEAST:
        return [], list(zip(splits, labelled, strict=True))
    chosen = np.zeros(total, dtype=bool)
    chosen[np.linspace(0, total - 1, count).astype(np.int64)] = True
    held, rest, begin = [], [], 0
    for split, rows in zip(splits, labelled, strict=True):
        out = chosen[begin : begin + len(rows)]
        held += [(split, row) for row in rows[out].tolist()]
        rest.append((split, rows[~out]))
        begin += len(rows)
    return held, rest


def fitted(means: ClassMeans, held: HeldOut | None, shrinkage: float | None) -> tuple[float, float]:
    """(shrinkage, temperature) by which the held-out images are likeliest; a `shrinkage` that is
    given stays. Images of classes that have no mean are left out."""
    if held is not None:
        known = means.counts[held.labels] > 0
        held = HeldOut(held.features[known], held.labels[known])
    if held is None or not len(held.labels):
        return _DEFAULT[0] if shrinkage is None else shrinkage, _DEFAULT[1]
    tried = []
    for candidate in SHRINKAGES if shrinkage is None else (shrinkage,):
        means.settle(candidate)
        logits = means(held.features).double()
        temperature = best_temperature(logits, held.labels)
        loss = F.cross_entropy(logits / temperature, held.labels).item()
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
