"""What a classifier confuses, and how far its confidence can be trusted.

In come labels, predictions and probabilities, out go counts and fractions.
"""

import torch
from torch import Tensor

ECE_BINS = 15


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Counts [C, C], int64: row = the label, column = the prediction, both int64 [n] in [0, C)."""
    cells = labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """The share of every class's images that were named right; None for a class without any."""
    counts = confusion.sum(dim=1).tolist()
    right = confusion.diagonal().tolist()
    return [r / n if n else None for r, n in zip(right, counts, strict=True)]


def calibration_error(confidence: Tensor, right: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean over the images of |accuracy - confidence| of their bin.

    `confidence` [n] in [0, 1] is the probability of the prediction, `right` [n] whether it was
    true. Equal bins, each open below and closed above (Guo et al., arXiv 1706.04599, eq. 3).
    """
    if len(confidence) == 0:
        raise ValueError("no prediction: there is nothing to be calibrated")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    confidence = confidence.double()
    bin_of = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    # Their differences are means times shares: sums over a bin, over all images.
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, bin_of, right.double() - confidence)
    return float(gaps.abs().sum() / len(confidence))
