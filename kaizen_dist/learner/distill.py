"""The two retention terms: distillation of the teacher's features and of its classes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.config.schema import Config
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.methods.base import Method, Pair
from kaizen_dist.learner.precision import full_precision


class DistilledRows:
    """Images of a step that are distilled: the share `distill.fraction` of every lane.

    From each lane the first images of the task and the first replayed ones, rounded up: the
    same images at every world size, with replay among them. (The order
    within a lane is random already.) A rank of `world_size` sees whole lanes, one after the other.
    """

    def __init__(self, config: Config, world_size: int) -> None:
        self.fraction = config.distill.fraction
        self.lanes = max(1, config.lanes // (world_size * config.train.accumulate))
        self.task = config.train.batch_size // config.lanes
        self.replayed = config.replay.batch_size // config.lanes

    def __call__(self, rows: Tensor, dim: int) -> Tensor:
        """Their rows of a rank's [..., n, ...] with n images along `dim`."""
        if self.fraction == 1:
            return rows
        per_lane, left = divmod(rows.shape[dim], self.lanes)
        if left or per_lane not in (self.task, self.task + self.replayed):
            raise ValueError(
                f"{rows.shape[dim]} images are not {self.lanes} lanes of {self.task} images of the "
                f"task (and {self.replayed} replayed)"
            )
        by_lane = rows.unflatten(dim, (self.lanes, per_lane))
        kept = [by_lane.narrow(dim + 1, 0, math.ceil(self.fraction * self.task))]
        if per_lane > self.task:
            count = math.ceil(self.fraction * self.replayed)
            kept.append(by_lane.narrow(dim + 1, self.task, count))
        return torch.cat(kept, dim + 1).flatten(dim, dim + 1)


class FeatureDistiller(nn.Module):
    """L_FE^KD: the method's own loss between h(student's projection) and the teacher's.

    h = Linear(d, hidden)-BN-ReLU-Linear(hidden, d) is carried from task to task (CaSSLe,
    arXiv 2112.04215).
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.predictor = mlp(dim, hidden, dim, batch_norm=True)

    def forward(self, method: Method, z: Pair, old: Pair, gather: Gather) -> Tensor:
        """The unweighted term, from the student's and the teacher's projections, [n, d] a view."""
        # Each view by itself: they are batches of their own to the BatchNorm.
        return method.distill(self.predictor(z[0]), self.predictor(z[1]), *old, gather)


@full_precision
def soft_label_loss(
    logits1: Tensor, logits2: Tensor, teacher_logits1: Tensor, teacher_logits2: Tensor
) -> Tensor:
    """L_C^KD: cross-entropy against the teacher's probabilities, mean over the two views.

    All are [n, C]; temperature 1, over all C classes (Kaizen, arXiv 2303.17235).
    """
    first = F.cross_entropy(logits1, teacher_logits1.softmax(dim=-1))
    second = F.cross_entropy(logits2, teacher_logits2.softmax(dim=-1))
    return (first + second) / 2
