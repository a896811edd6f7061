"""The linear probe against scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kaizen_dist.evaluation.probe import fit_probe, linear_probe

L2 = 1e-3


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(pixels).float(), torch.from_numpy(labels)
    return features[:900], labels[:900], features[900:], labels[900:]


@pytest.fixture(scope="module")
def reference(digits):
    features, labels, test_features, test_labels = (t.numpy() for t in digits)
    scaler = StandardScaler().fit(features.astype(np.float64))
    model = LogisticRegression(C=1 / (len(labels) * L2), tol=1e-9, max_iter=10_000)
    model.fit(scaler.transform(features.astype(np.float64)), labels)
    inputs = scaler.transform(test_features.astype(np.float64))
    return model, model.predict_proba(inputs), model.score(inputs, test_labels)


def test_same_solution_as_scikit_learn(digits, reference):
    features, labels, test_features, _ = digits
    model, probabilities, _ = reference
    probe = fit_probe(features, labels, L2)
    np.testing.assert_allclose(probe.weight.numpy(), model.coef_, atol=1e-4)
    np.testing.assert_allclose(
        probe.logits(test_features).softmax(dim=1).numpy(), probabilities, atol=1e-4
    )


def test_same_accuracy_as_scikit_learn(digits, reference):
    accuracy = linear_probe(*digits, num_classes=10, l2=L2)
    assert accuracy == pytest.approx(reference[2], abs=1e-9)
    assert accuracy > 0.88


def test_deterministic_and_indifferent_to_scale_and_constant_features(digits):
    features, labels, test_features, test_labels = digits
    once = fit_probe(features, labels)
    again = fit_probe(features, labels)
    assert torch.equal(once.weight, again.weight)
    assert torch.equal(once.bias, again.bias)
    assert bool((features.std(dim=0) == 0).any())  # the corners of the digits are always blank
    scaled = linear_probe(features * 1e3 + 5, labels, test_features * 1e3 + 5, test_labels, 10)
    assert scaled == pytest.approx(linear_probe(*digits, num_classes=10), abs=1e-3)


def test_a_subset_of_classes_is_solved_among_them(digits):
    """A class without a training label must not drag the others' biases to infinity."""
    features, labels, test_features, test_labels = digits
    few = (labels == 3) | (labels == 7)
    probe = fit_probe(features[few], labels[few])
    assert probe.classes.tolist() == [3, 7]
    assert float(probe.bias.abs().max()) < 10
    seen = (test_labels == 3) | (test_labels == 7)
    of_seen = linear_probe(features[few], labels[few], test_features[seen], test_labels[seen], 10)
    assert of_seen > 0.95
    of_all = linear_probe(features[few], labels[few], test_features, test_labels, 10)
    assert of_all == pytest.approx(of_seen * float(seen.double().mean()))


def test_works_where_gradients_are_off(digits):
    expected = linear_probe(*digits, num_classes=10)
    with torch.no_grad():
        assert linear_probe(*digits, num_classes=10) == expected
    with torch.inference_mode():
        assert linear_probe(*[t.clone() for t in digits], num_classes=10) == expected


def test_one_class_only(digits):
    features, labels, test_features, test_labels = digits
    ones = labels == 1
    accuracy = linear_probe(features[ones], labels[ones], test_features, test_labels, 10)
    assert accuracy == pytest.approx(float((test_labels == 1).double().mean()))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.ones(3, 2), torch.tensor([0, 1]), "must be"),
        (torch.ones(0, 2), torch.tensor([]).long(), "n > 0"),
        (torch.ones(2, 2), torch.tensor([0, 5]), "training labels"),
        (torch.ones(2, 2), torch.tensor([0, -1]), "training labels"),
        (torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), "not finite"),
    ],
)
def test_bad_input_is_refused(features, labels, message):
    good = torch.ones(2, features.shape[1] if features.ndim == 2 else 1)
    with pytest.raises(ValueError, match=message):
        linear_probe(features, labels, good, torch.tensor([0, 1]), num_classes=2)
