"""Features on a plane against scikit-learn; which images are shown."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from kaizen_dist.evaluation.analysis import principal_components
from kaizen_dist.models.visualise import chosen, evenly


def test_principal_components_are_those_of_scikit_learn():
    flowers = load_iris().data
    points, explained = principal_components(torch.from_numpy(flowers).float())
    reference = PCA(n_components=2).fit(flowers)
    theirs = reference.transform(flowers)
    # An axis has no sign of its own: ours has its largest entry positive.
    largest = np.abs(reference.components_).argmax(axis=1)
    theirs *= np.sign(reference.components_[[0, 1], largest])
    assert np.abs(points.numpy() - theirs).max() < 1e-5
    assert explained == pytest.approx(tuple(reference.explained_variance_ratio_), abs=1e-6)


def test_equal_features_lie_on_one_point():
    points, explained = principal_components(torch.ones(4, 3))
    assert points.abs().max() == 0
    assert explained == (0.0, 0.0)


def test_the_best_of_every_kind_come_first():
    assert chosen([5, 5, 5, 2, 7, 2], 4) == [0, 3, 4, 1]
    assert chosen([5, 5], 4) == [0, 1]
    assert chosen([], 4) == []


def test_evenly():
    assert evenly(3, 10) == [0, 1, 2]
    assert evenly(9, 3) == [0, 4, 8]
