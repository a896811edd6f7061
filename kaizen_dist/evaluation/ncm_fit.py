"""Update of a learner's class means when a task ends, over all ranks.

Each rank sums over its images; the sums are added over the ranks in double precision, so that the
result depends on the world size by rounding only.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kaizen_dist.evaluation.evaluator import Evaluator, SplitRows, inference
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.ncm import ClassMeans
from kaizen_dist.stream.shards import Split


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
            means.carry(*_drift(evaluator, learner, (task, *replayed)))
        means.add(*_statistics(evaluator, learner, means, (task, *labelled_late)))
        means.settle(evaluator.config.eval.shrinkage)


def _drift(
    evaluator: Evaluator, learner: Learner, splits: Sequence[Split]
) -> tuple[Tensor, Tensor]:
    """Sums over all images of a^T a and a^T (b - a), of features a before the task and b now."""

    def both(images: Tensor) -> Tensor:
        return torch.stack([learner.embed_before(images), learner.embed(images)], dim=1)

    d = learner.backbone.features
    sums = torch.zeros(2, d, d, dtype=torch.float64, device=evaluator.context.device)
    for split in splits:
        for pairs, _ in evaluator.embed_own(learner, SplitRows(split), "drift of features", both):
            before, now = F.normalize(pairs.double(), dim=2).unbind(1)
            sums += torch.stack([before.T @ before, before.T @ (now - before)])
    square, change = evaluator.context.sum(sums)
    return square, change


def _statistics(
    evaluator: Evaluator, learner: Learner, means: ClassMeans, splits: Sequence[Split]
) -> tuple[Tensor, Tensor, Tensor]:
    """(counts [C], sums [C, d], sum of f^T f [d, d]) over labelled training images."""
    classes, d = means.means.shape
    device = evaluator.context.device
    sums = torch.zeros(classes + d, d, dtype=torch.float64, device=device)
    counts = torch.zeros(classes, dtype=torch.long, device=device)
    for split in splits:
        labelled = SplitRows(split, np.flatnonzero(split.labels >= 0))
        for features, labels in evaluator.embed_own(learner, labelled, "class means"):
            unit = F.normalize(features.double(), dim=1)
            # A product, not index_add, which is not deterministic on GPUs.
            of_class = F.one_hot(labels, classes)
            counts += of_class.sum(0)
            sums += torch.cat([of_class.double().T, unit.T]) @ unit
    counts, sums = evaluator.context.sum(counts), evaluator.context.sum(sums)
    return counts, sums[:classes], sums[classes:]
