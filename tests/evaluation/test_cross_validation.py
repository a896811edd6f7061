"""What is held out of class means, and what the held-out images decide."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from kaizen_dist.evaluation.cross_validation import (
    DEFAULT,
    SHRINKAGES,
    Sample,
    best_temperature,
    choose_sample,
    fitted,
)
from kaizen_dist.learner.ncm import ClassMeans, FeatureSums

CLASSES, FEATURES = 4, 24


class Labelled:
    """As much of a split as is asked for."""

    def __init__(self, *labels: int) -> None:
        self.labels = np.array(labels)


def blobs(seed: int, each: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, labels) of classes that overlap, of unequal spread in each direction."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, FEATURES))
    labels = np.repeat(np.arange(CLASSES), each)
    stretched = np.geomspace(0.2, 3, FEATURES)
    features = centres[labels] + spread * stretched * rng.normal(size=(len(labels), FEATURES))
    return torch.from_numpy(features), torch.from_numpy(labels)


def sums_of(features: torch.Tensor, labels: torch.Tensor) -> FeatureSums:
    return FeatureSums.of(features, labels, CLASSES)


def nothing() -> ClassMeans:
    return ClassMeans(CLASSES, FEATURES).double()


def means_of(*parts: FeatureSums) -> ClassMeans:
    means = nothing()
    for part in parts:
        means.add(part)
    return means


def test_images_are_sampled_evenly_and_the_rest_is_the_rest():
    splits = [Labelled(*([0, -1, 1] * 50)), Labelled(*([2] * 60))]
    held, rest = choose_sample(splits, 120)
    assert len(held) == 120
    for split, rows in rest:
        out = [row for s, row in held if s is split]
        assert sorted([*out, *rows]) == np.flatnonzero(split.labels >= 0).tolist()
        assert len(out) == pytest.approx(3 * len(rows), abs=3)
    held, rest = choose_sample(splits, 1000)
    assert len(held) == 160
    assert not sum(len(rows) for _, rows in rest)


def test_of_few_images_none_is_held_out():
    split = Labelled(*range(99))
    held, rest = choose_sample([split], 1000)
    assert held == []
    assert rest[0][1].tolist() == list(range(99))
    assert choose_sample([Labelled(-1, -1)], 1000)[0] == []


@pytest.mark.parametrize("scale", [0.02, 1.0, 40.0])
def test_the_temperature_is_scipys_minimum(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    logits = scale * (rng.normal(size=(400, 5)) + 1.5 * np.eye(5)[labels])

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[range(400), labels].mean()

    found = best_temperature(torch.from_numpy(logits), torch.from_numpy(labels))
    assert np.log(found) == pytest.approx(minimize_scalar(loss).x, abs=1e-5)


def written_out(held: Sample, shrinkage: float) -> tuple[float, float]:
    """(loss, temperature) with each fifth held out of all images."""
    logits = []
    for fold in range(5):
        out = torch.arange(len(held.labels)) % 5 == fold
        means = means_of(sums_of(held.features[~out], held.labels[~out]))
        means.settle(shrinkage)
        logits.append(means(held.features[out]))
    joined = torch.cat(logits)
    labels = torch.cat([held.labels[fold::5] for fold in range(5)])
    temperature = best_temperature(joined, labels)
    return torch.nn.functional.cross_entropy(joined / temperature, labels).item(), temperature


def test_the_likeliest_shrinkage_is_chosen():
    """Of all that are tried, with the temperature that suits each; many images need little."""
    chosen = {}
    for each in (8, 1000):
        held = Sample(*blobs(1, each))
        shrinkage, temperature = fitted(nothing(), sums_of(*held), held)
        tried = {candidate: written_out(held, candidate) for candidate in SHRINKAGES}
        assert tried[shrinkage][0] == pytest.approx(min(tried.values())[0], rel=1e-9)
        assert tried[shrinkage][1] == pytest.approx(temperature, rel=1e-6)
        chosen[each] = shrinkage
    assert chosen[1000] < chosen[8]


def test_classes_that_were_known_before_take_part():
    """They are answers too, so that the temperature is that of all classes."""
    features, labels = blobs(1, 100)
    old, own = labels < 2, labels >= 2
    before, held = sums_of(features[old], labels[old]), Sample(features[own], labels[own])
    alone = fitted(nothing(), sums_of(*held), held)
    joined = fitted(means_of(before), sums_of(*held), held)
    assert joined[1] != pytest.approx(alone[1], rel=1e-3)


def test_the_temperature_makes_confidences_honest_and_changes_no_answer():
    held, (features, labels) = Sample(*blobs(1, 200)), blobs(2, 500)
    shrinkage, temperature = fitted(nothing(), sums_of(*held), held)
    means = means_of(sums_of(*held))
    means.settle(shrinkage)
    before = means(features)
    means.settle(shrinkage, temperature)
    after = means(features)
    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(after, before / temperature)
    sure = after.softmax(1).max(1).values.mean().item()
    assert sure == pytest.approx((after.argmax(1) == labels).double().mean().item(), abs=0.05)


def test_nothing_moves_the_means_that_are_there():
    known, held = sums_of(*blobs(1, 50)), Sample(*blobs(2, 50))
    means = means_of(known)
    means.settle(0.5)
    before = {name: tensor.clone() for name, tensor in means.state_dict().items()}
    fitted(means, sums_of(*held), held)
    assert all(torch.equal(tensor, before[name]) for name, tensor in means.state_dict().items())


def test_images_that_are_all_alone_decide_nothing():
    features, labels = blobs(1, 1)
    assert fitted(nothing(), sums_of(features, labels), Sample(features, labels)) == DEFAULT


def test_an_image_that_is_alone_in_its_class_is_left_out():
    features, labels = blobs(1, 50)
    kept = (labels < 3) | (torch.arange(len(labels)) == len(labels) - 1)
    alone = Sample(features[kept], labels[kept])
    shrinkage, temperature = fitted(nothing(), sums_of(*alone), alone)
    assert np.isfinite(temperature)
    assert shrinkage in SHRINKAGES
