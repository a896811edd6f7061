"""Analyses of predictions and features: confusion, calibration, CKA, principal components."""

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Counts [C, C], int64: row = the label, column = the prediction, both int64 [n] in [0, C)."""
    cells = labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """Accuracy on the images of each class; None for a class without any."""
    counts, right = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    return [r / n if n else None for r, n in zip(right, counts, strict=True)]


def calibration_error(confidence: Tensor, right: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean over the images of |accuracy - confidence| of their bin.

    `confidence` [n] in [0, 1] is the probability of the prediction, `right` [n] whether it was
    true. Equal bins, each open below and closed above (Guo et al., arXiv 1706.04599, eq. 3).
    """
    if len(confidence) == 0:
        raise ValueError("no prediction: there is nothing to be calibrated")
    return float(calibration_gaps(confidence, right, bins).abs().sum() / len(confidence))


def calibration_gaps(confidence: Tensor, right: Tensor, bins: int = ECE_BINS) -> Tensor:
    """float64 [bins]: right predictions less their confidence, summed over the images of each bin.

    Of several parts they add up, and the sum of their sizes over all images is the error: a gap of
    a bin is its difference of means times its share.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    confidence = confidence.double()
    bin_of = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    # A product, not index_add, which is not deterministic on GPUs.
    return F.one_hot(bin_of, bins).double().T @ (right.double() - confidence)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """CKA with a linear kernel of features [n, d] and [n, e] of the same n images, in [0, 1].

    1 for features that differ by a rotation, a scale and a shift only; about 0 for unrelated
    ones (Kornblith et al., arXiv 1905.00414, eq. 3). NaN where one of them does not vary.

    Raises ValueError for shapes that do not fit.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"features {tuple(first.shape)} and {tuple(second.shape)} are not of the same images"
        )
    x, y = (features.double() - features.double().mean(dim=0) for features in (first, second))
    # Over the features, not over the images: d and e are small, n need not be.
    cross = torch.linalg.matrix_norm(y.T @ x).square()
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(cross / own)


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
