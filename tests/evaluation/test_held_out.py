"""What is held out of class means, and what the held-out images decide."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from kaizen_dist.evaluation.held_out import (
    SHRINKAGES,
    HeldOut,
    best_temperature,
    fitted,
    hold_out,
)
from kaizen_dist.learner.ncm import ClassMeans

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


def means_of(features: torch.Tensor, labels: torch.Tensor) -> ClassMeans:
    unit = torch.nn.functional.normalize(features, dim=1)
    of_class = torch.nn.functional.one_hot(labels, CLASSES)
    means = ClassMeans(CLASSES, FEATURES).double()
    means.add(of_class.sum(0), of_class.double().T @ unit, unit.T @ unit)
    return means


def test_a_fifth_is_held_out_evenly_and_the_rest_is_the_rest():
    splits = [Labelled(*([0, -1, 1] * 50)), Labelled(*([2] * 60))]
    held, rest = hold_out(splits, 1000)
    assert len(held) == (100 + 60) // 5
    for split, rows in rest:
        out = [row for s, row in held if s is split]
        assert sorted([*out, *rows]) == np.flatnonzero(split.labels >= 0).tolist()
        assert len(out) == pytest.approx(len(rows) / 4, abs=1)
    assert len(hold_out(splits, 24)[0]) == 24


def test_of_few_images_none_is_held_out():
    split = Labelled(*range(99))
    held, rest = hold_out([split], 1000)
    assert held == []
    assert rest[0][1].tolist() == list(range(99))
    assert hold_out([Labelled(-1, -1)], 1000)[0] == []


@pytest.mark.parametrize("scale", [0.02, 1.0, 40.0])
def test_the_temperature_is_scipys_minimum(scale):
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    logits = scale * (rng.normal(size=(400, 5)) + 1.5 * np.eye(5)[labels])

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[range(400), labels].mean()

    found = best_temperature(torch.from_numpy(logits), torch.from_numpy(labels))
    assert np.log(found) == pytest.approx(minimize_scalar(loss).x, abs=1e-5)


def test_the_likeliest_shrinkage_is_chosen():
    """Of all that are tried, with the temperature that suits each; many images need little."""
    chosen = {}
    for each in (5, 2000):
        means, held = means_of(*blobs(1, each)), HeldOut(*blobs(2, 500))
        shrinkage, temperature = fitted(means, held, None)
        losses = {}
        for candidate in SHRINKAGES:
            means.settle(candidate)
            logits = means(held.features)
            own = best_temperature(logits, held.labels)
            losses[candidate] = torch.nn.functional.cross_entropy(logits / own, held.labels).item()
            if candidate == shrinkage:
                assert own == pytest.approx(temperature)
        assert losses[shrinkage] == min(losses.values())
        chosen[each] = shrinkage
    assert chosen[2000] < chosen[5]


def test_a_shrinkage_that_is_given_stays():
    means, held = means_of(*blobs(1, 50)), HeldOut(*blobs(2, 50))
    shrinkage, temperature = fitted(means, held, 0.7)
    assert shrinkage == 0.7
    means.settle(0.7)
    assert temperature == pytest.approx(best_temperature(means(held.features), held.labels))


def test_the_temperature_makes_confidences_honest_and_changes_no_answer():
    means, (features, labels) = means_of(*blobs(1, 60)), blobs(2, 500)
    shrinkage, temperature = fitted(means, HeldOut(*blobs(3, 500)), None)
    means.settle(shrinkage)
    before = means(features)
    means.settle(shrinkage, temperature)
    after = means(features)
    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(after, before / temperature)
    sure = after.softmax(1).max(1).values.mean().item()
    assert sure == pytest.approx((after.argmax(1) == labels).double().mean().item(), abs=0.05)


def test_without_images_there_is_a_default():
    means = means_of(*blobs(1, 50))
    assert fitted(means, None, None) == fitted(means, HeldOut(*(t[:0] for t in blobs(2, 1))), None)
    assert fitted(means, None, 0.4)[0] == 0.4


def test_a_class_that_is_held_out_whole_is_left_out():
    features, labels = blobs(1, 50)
    means = means_of(features[labels < 3], labels[labels < 3])
    held = blobs(2, 50)
    known = held[1] < 3
    assert fitted(means, HeldOut(*held), None) == fitted(
        means, HeldOut(held[0][known], held[1][known]), None
    )
