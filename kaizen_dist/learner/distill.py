"""The two retention terms: the student held to its teacher's features and to its classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.heads import mlp
from kaizen_dist.learner.methods.base import Method, Pair
from kaizen_dist.learner.precision import full_precision


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
