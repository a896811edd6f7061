"""Nearest class mean (NCM): a classifier that follows from the mean feature of every class.

For every class the number of its images and the mean of their features (of length 1) are kept,
and the scatter about these means that all classes share. The prediction is the nearest mean by that
scatter: linear discriminant analysis with equal priors, the covariance shrunk to the sphere.

Features drift as the backbone learns on. Statistics of past classes are moved by a linear map,
fitted on features of the same images before the task (those of the teacher) and after it
(learnable drift compensation, arXiv 2407.08536).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.learner.precision import full_precision

_NEVER = -1e9
"""The logit of a class without images: never predicted, and finite."""


class FeatureSums(NamedTuple):
    """Of the images of every class, whose features [n, d] are scaled to length 1."""

    counts: Tensor
    """int64 [C]: images"""
    sums: Tensor
    """float64 [C, d]: of their features"""
    square: Tensor
    """float64 [d, d]: of f^T f"""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> "FeatureSums":
        """Of features [n, d] of any length with labels int64 [n]."""
        unit = F.normalize(features.double(), dim=1)
        # A product, not index_add, which is not deterministic on GPUs.
        of_class = F.one_hot(labels, classes)
        both = torch.cat([of_class.double().T, unit.T]) @ unit
        return cls(of_class.sum(0), both[:classes], both[classes:])

    def plus(self, other: "FeatureSums", sign: int = 1) -> "FeatureSums":
        """With the images of `other`, or with `sign` -1 without them."""
        return FeatureSums(*(a + sign * b for a, b in zip(self, other, strict=True)))


class ClassMeans(nn.Module):
    """Counts, means and scatter of `classes` classes of features [n, `features`], and the linear
    classifier on features of length 1 that follows from them. Buffers only: nothing is trained."""

    counts: Tensor
    """int64 [C]: labelled images that the mean of a class is made of."""
    means: Tensor
    """[C, d]; zeros for a class without images."""
    scatter: Tensor
    """[d, d]: sum over all images of the outer product of their distance from the class's mean."""
    weight: Tensor
    """[C, d], and"""
    bias: Tensor
    """[C]: the logits' linear map, the temperature included."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("means", torch.zeros(classes, features))
        self.register_buffer("scatter", torch.zeros(features, features))
        self.register_buffer("weight", torch.zeros(classes, features))
        self.register_buffer("bias", torch.full((classes,), _NEVER))

    def grow(self, classes: int) -> None:
        """Make place for `classes` classes; the new ones have no image yet."""
        more = classes - len(self.counts)
        self.counts = F.pad(self.counts, (0, more))
        self.means = F.pad(self.means, (0, 0, 0, more))
        self.weight = F.pad(self.weight, (0, 0, 0, more))
        self.bias = F.pad(self.bias, (0, more), value=_NEVER)

    @full_precision
    def forward(self, features: Tensor) -> Tensor:
        """Logits [n, C] of features [n, d]."""
        return F.linear(F.normalize(features, dim=1).to(self.weight.dtype), self.weight, self.bias)

    @torch.no_grad()
    def carry(self, before: Tensor, change: Tensor, ridge: float) -> None:
        """Move means and scatter along with the features.

        Args:
            before: float64 [d, d], the weighted sum of a^T a over images with features a before ...
            change: float64 [d, d], ... and of a^T (b - a), with b their features now.
            ridge: how far a change counts as noise, against the mean square of a feature.
        """
        d = len(before)
        noise = ridge * before.trace() / d * torch.eye(d).to(before)
        step = torch.linalg.solve(before + noise, change)
        map_ = step + torch.eye(d).to(step)
        self.means.copy_(self.means.double() @ map_)
        self.scatter.copy_(map_.T @ self.scatter.double() @ map_)

    @torch.no_grad()
    def add(self, more: FeatureSums) -> None:
        """Join the features of more images."""
        counts, sums, square = more
        new = sums / counts.clamp(min=1)[:, None]
        total = self.counts + counts
        share = (counts / total.clamp(min=1))[:, None].double()
        self.means.copy_(torch.lerp(self.means.double(), new, share))
        # Scatter about the new images' own means: means of old features are but estimates.
        self.scatter.add_(square - sums.T @ new)
        self.counts.copy_(total)

    @torch.no_grad()
    def settle(self, shrinkage: float, temperature: float = 1.0) -> None:
        """Bring the classifier up to date; `shrinkage` in (0, 1] of the covariance to the sphere of
        its mean variance (1: the nearest mean by plain distance), `temperature` that of the
        probabilities."""
        d, images = len(self.scatter), self.counts.sum().clamp(min=1)
        covariance = self.scatter.double() / images
        variance = covariance.trace() / d
        if variance <= 0:
            covariance, variance = torch.eye(d).to(covariance), torch.ones(()).to(covariance)
        round_ = variance * torch.eye(d).to(covariance)
        means = self.means.double()
        weight = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * round_, means.T).T
        weight = weight / temperature
        met = self.counts > 0
        bias = torch.where(met, -(weight * means).sum(1) / 2, _NEVER)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
