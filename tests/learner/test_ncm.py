"""The classifier of class means, against scikit-learn's discriminant analysis and ridge."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from kaizen_dist.learner.ncm import ClassMeans, FeatureSums

CLASSES, FEATURES = 4, 6


def images(seed: int, each: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """(features [n, d] of length 1, labels [n]): as many of every class, of unequal spread."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    labels = np.repeat(np.arange(CLASSES), each)
    spread = np.array([3.0, 1, 1, 0.5, 0.5, 0.1])
    return normalize(centres[labels] + spread * rng.normal(size=(len(labels), FEATURES))), labels


def add(means: ClassMeans, features: np.ndarray, labels: np.ndarray) -> None:
    means.add(FeatureSums.of(torch.from_numpy(features), torch.from_numpy(labels), CLASSES))


def made(*parts: tuple[np.ndarray, np.ndarray]) -> ClassMeans:
    means = ClassMeans(CLASSES, FEATURES).double()
    for part in parts:
        add(means, *part)
    return means


@pytest.mark.parametrize("shrinkage", [0.1, 0.9])
def test_it_is_scikit_learns_discriminant_analysis(shrinkage):
    features, labels = images(1)
    means = made((features, labels))
    means.settle(shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.25] * 4)
    theirs.fit(features, labels)
    tests, _ = images(2)
    ours = means(torch.from_numpy(3 * tests)).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.predict_proba(tests)))
    assert 0.5 < (ours.argmax(1).numpy() == labels).mean() < 1, "neither trivial nor hopeless"


def test_shrunk_to_the_sphere_it_is_the_nearest_centroid():
    features, labels = images(1)
    means = made((features, labels))
    means.settle(1.0)
    tests, _ = images(2)
    theirs = NearestCentroid().fit(features, labels).predict(tests)
    assert (means(torch.from_numpy(tests)).argmax(1).numpy() == theirs).all()


def test_a_class_that_comes_again_is_the_mean_of_all_its_images():
    first, second = images(1), images(2, each=10)
    twice = made(first, second)
    both = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    at_once = made(both)
    torch.testing.assert_close(twice.means, at_once.means)
    assert twice.counts.tolist() == [40] * CLASSES


def test_a_class_never_met_is_never_the_answer():
    features, labels = images(1)
    known = labels != 2
    means = made((features[known], labels[known]))
    means.settle(0.9)
    logits = means(torch.from_numpy(features))
    assert 2 not in logits.argmax(1)
    assert logits.softmax(1)[:, 2].max() == 0
    assert torch.isfinite(logits).all()


def test_without_any_image_all_answers_are_numbers():
    means = ClassMeans(CLASSES, FEATURES)
    means.settle(0.9)
    assert torch.isfinite(means(torch.randn(3, FEATURES)).softmax(1)).all()


def test_drift_is_scikit_learns_ridge():
    before, labels = images(1)
    now = normalize(before + 0.2 * np.tanh(before @ np.random.default_rng(3).normal(size=(6, 6))))
    means = made((before, labels))
    expected, scatter = means.means.clone(), means.scatter.clone()
    a, b = torch.from_numpy(before), torch.from_numpy(now)
    means.carry(a.T @ a, a.T @ (b - a), 0.1)
    # The mean square of a feature of length 1 is 1 / d, over n images.
    ridge = Ridge(alpha=0.1 * len(before) / FEATURES, fit_intercept=False)
    change = torch.from_numpy(ridge.fit(before, now - before).coef_.T)
    torch.testing.assert_close(means.means, expected + expected @ change)
    whole = torch.eye(FEATURES).double() + change
    torch.testing.assert_close(means.scatter, whole.T @ scatter @ whole)


def test_a_turn_of_all_features_is_followed():
    """What no image of a class shows of its drift is told by those of others."""
    features, labels = images(1, each=300)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    turn = np.linalg.matrix_power(turn, 2)  # a rotation
    means = made((features, labels))
    a, b = torch.from_numpy(features), torch.from_numpy(features @ turn)
    fresh = made((features @ turn, labels))
    stale = (means.means - fresh.means).norm()
    means.carry(a.T @ a, a.T @ (b - a), 0.1)
    assert (means.means - fresh.means).norm() < 0.3 * stale
