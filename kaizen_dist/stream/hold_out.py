"""Which images of a task are held out for validation, and which keep their label."""

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.numbers import Numbers, compact


def hold_out(group: Numbers, fraction: float, seed: int, task: int) -> NDArray[np.bool_]:
    """[n] which images of a task become validation images: about `fraction` of each `group` [n].

    Systematic sampling: the images, sorted by group and shuffled within, are taken wherever the
    running sum of `fraction` passes a whole number, so that any stretch of them, and so any number
    of tiny groups together, gives its share to within one image. A group always keeps an image to
    train on.
    """
    count = len(group)
    order = compact(rng.shuffle(rng.key("hold out", seed, task), count))
    order = order[np.argsort(group[order], kind="stable")]
    start = rng.uniform(rng.key("hold out start", seed, task), 1, 0)[0]
    passed = np.floor(start + fraction * np.arange(count + 1))
    held = np.zeros(count, bool)
    held[order] = np.diff(passed) > 0
    in_order = group[order]
    first = np.flatnonzero(np.diff(in_order, prepend=in_order[:1] - 1))
    some_left = np.logical_or.reduceat(~held[order], first)
    held[order[first[~some_left]]] = False
    return held


def keep_labels(
    labels: Numbers, is_val: NDArray[np.bool_], fraction: float, seed: int, task: int
) -> Numbers:
    """[n] labels of a task's images, -1 where hidden: `fraction` of each class's training images
    keep theirs, one at least unless the fraction is 0; validation images always do.

    A smaller fraction under the same seed keeps a subset of what a larger one keeps.
    """
    stored = labels.copy()
    if fraction == 1:
        return stored
    train = compact(rng.shuffle(rng.key("labels", seed, task), len(labels)))
    train = train[~is_val[train]]
    train = train[np.argsort(labels[train], kind="stable")]
    _, sizes = np.unique(labels[train], return_counts=True)
    rank = np.arange(len(train)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.maximum(1, np.rint(fraction * sizes)) if fraction > 0 else np.zeros(len(sizes))
    stored[train[rank >= np.repeat(kept, sizes)]] = UNLABELLED
    return stored
