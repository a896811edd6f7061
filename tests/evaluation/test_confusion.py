"""Confusion and calibration against scikit-learn, torchmetrics and cases worked by hand."""

import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multiclass_calibration_error

from kaizen_dist.evaluation.analysis import (
    calibration_error,
    confusion_matrix,
    per_class_accuracy,
)


def test_confusion_is_scikit_learns():
    draw = torch.Generator().manual_seed(0)
    labels, predicted = (torch.randint(0, 7, (500,), generator=draw) for _ in range(2))
    ours = confusion_matrix(labels, predicted, 7)
    theirs = sklearn.confusion_matrix(labels.numpy(), predicted.numpy(), labels=range(7))
    assert ours.tolist() == theirs.tolist()
    recall = sklearn.recall_score(labels.numpy(), predicted.numpy(), average=None)
    assert per_class_accuracy(ours) == pytest.approx(recall)


def test_a_class_without_images_has_no_accuracy():
    matrix = confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), 4)
    assert per_class_accuracy(matrix) == [0.5, None, 1.0, None]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_calibration_is_that_of_torchmetrics(sharpness):
    draw = torch.Generator().manual_seed(1)
    probabilities = (sharpness * torch.randn(400, 10, generator=draw).double()).softmax(1)
    labels = torch.randint(0, 10, (400,), generator=draw)
    confidence, predicted = probabilities.max(1)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=10, n_bins=15)
    ours = calibration_error(confidence, predicted == labels)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_by_hand():
    """Two bins of ten: 0.25 and 0.28 hold one hit of two, 0.95 one of one."""
    confidence = torch.tensor([0.25, 0.28, 0.95])
    right = torch.tensor([True, False, True])
    expected = (2 * abs(0.5 - 0.265) + abs(1 - 0.95)) / 3
    assert calibration_error(confidence, right, bins=10) == pytest.approx(expected, abs=1e-7)
    assert calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool)) == 0
    with pytest.raises(ValueError, match="no prediction"):
        calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool))
