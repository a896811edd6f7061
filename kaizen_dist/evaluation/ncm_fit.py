"""Update of a learner's class means when a task ends, over all ranks.

Each rank sums over its images; the sums are added over the ranks in double precision, so that the
result depends on the world size by rounding only.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.evaluation.cross_validation import DEFAULT, Sample, choose_sample, fitted
from kaizen_dist.evaluation.evaluator import Evaluator, SplitRows, inference
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.ncm import ClassMeans, FeatureSums
from kaizen_dist.stream.shards import Split

RIDGE: Final = 0.02
"""Of the drift map: chosen on a held-out part of CIFAR-10's training images."""


def update(
    evaluator: Evaluator,
    learner: Learner,
    task: Split,
    replayed: Sequence[Split],
    labelled_late: Sequence[Split] = (),
) -> None:
    """Carry the means of past classes to the present features, and add those of the task and of
    replayed images that were labelled, or labelled otherwise, since the task before it.

    The drift is measured on the task's images, labelled or not, and on the replayed ones, if
    there is a teacher to give their former features; else past means stay as they are.
    """
    means = learner.class_means
    assert means is not None
    with inference(learner):
        if learner.teacher is not None and bool((means.counts > 0).any()):
            ridge = evaluator.config.eval.drift_ridge
            sums = _drift(evaluator, learner, task, replayed, by_rareness=ridge is None)
            means.carry(*sums, RIDGE if ridge is None else ridge)
        _learn(evaluator, learner, means, (task, *labelled_late))


def refitted(evaluator: Evaluator, learner: Learner, tasks: Sequence[Split]) -> ClassMeans:
    """Class means of all labelled images of some tasks by the present features: the oracle, which
    a continual learner, whose past images are gone, cannot have."""
    device = next(learner.parameters()).device
    means = ClassMeans(learner.num_classes, learner.backbone.features).to(device)
    with inference(learner):
        _learn(evaluator, learner, means, tasks)
    return means


def _learn(
    evaluator: Evaluator, learner: Learner, means: ClassMeans, splits: Sequence[Split]
) -> None:
    """Add the labelled images of `splits`, and bring the classifier up to date: its shrinkage and
    temperature are those by which some of these images are likeliest, held out."""
    shrinkage, most = evaluator.config.eval.shrinkage, evaluator.config.eval.bank
    chosen, rest = choose_sample(splits, most if shrinkage is None else 0)
    known = _sums_of(evaluator, learner, means, rest)
    fit = DEFAULT if shrinkage is None else (shrinkage, 1.0)
    if chosen:
        held = Sample(*evaluator.embed_all(learner, chosen, "images to be held out"))
        known = known.plus(FeatureSums.of(*held, len(means.counts)))
        fit = fitted(means, known, held)
    means.add(known)
    means.settle(*fit)


def _drift(
    evaluator: Evaluator,
    learner: Learner,
    task: Split,
    replayed: Sequence[Split],
    by_rareness: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over all images of a^T a and a^T (b - a), of features a before the task and b now.

    The replayed images show where past classes went, and are few: `by_rareness` they weigh more
    than their number, by the square root of what would make them as heavy as the task.
    """

    def both(images: Tensor) -> Tensor:
        return torch.stack([learner.embed_before(images), learner.embed(images)], dim=1)

    d = learner.backbone.features
    sums = torch.zeros(2, d, d, dtype=torch.float64, device=evaluator.context.device)
    kept = max(1, sum(map(len, replayed)))
    heavier = math.sqrt(max(1, len(task) / kept)) if by_rareness else 1.0
    for split, weight in ((task, 1.0), *((split, heavier) for split in replayed)):
        for pairs, _ in evaluator.embed_own(learner, SplitRows(split), "drift of features", both):
            before, now = F.normalize(pairs.double(), dim=2).unbind(1)
            sums += weight * torch.stack([before.T @ before, before.T @ (now - before)])
    square, change = evaluator.context.sum(sums)
    return square, change


def _sums_of(
    evaluator: Evaluator,
    learner: Learner,
    means: ClassMeans,
    parts: Sequence[tuple[Split, NDArray[np.int64]]],
) -> FeatureSums:
    """Over some rows of some splits, all of which are labelled; the same on every rank."""
    classes, d = means.means.shape
    device = evaluator.context.device
    own = FeatureSums.of(torch.zeros(0, d).to(device), torch.zeros(0).long().to(device), classes)
    for split, rows in parts:
        for batch in evaluator.embed_own(learner, SplitRows(split, rows), "class means"):
            own = own.plus(FeatureSums.of(*batch, classes))
    counts = evaluator.context.sum(own.counts)
    both = evaluator.context.sum(torch.cat([own.sums, own.square]))
    return FeatureSums(counts, both[:classes], both[classes:])
