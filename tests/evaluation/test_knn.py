"""The kNN classifier against lightly's and scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from kaizen_dist.evaluation import knn
from kaizen_dist.evaluation.knn import knn_predict

K, TEMPERATURE = 20, 0.07


@pytest.fixture(scope="module")
def digits():
    """Bank and queries of real images, centred so that cosines differ in sign."""
    pixels, labels = load_digits(return_X_y=True)
    features = torch.from_numpy(pixels - pixels.mean(axis=0))
    labels = torch.from_numpy(labels)
    return features[:700], labels[:700], features[700:1100], labels[700:1100]


def test_same_predictions_as_lightly(digits):
    lightly = pytest.importorskip("lightly.utils.benchmarking.knn")
    bank, labels, queries, _ = digits
    bank_unit = torch.nn.functional.normalize(bank, dim=1)
    queries_unit = torch.nn.functional.normalize(queries, dim=1)
    expected = lightly.knn_predict(queries_unit, bank_unit.T, labels, 10, K, TEMPERATURE)[:, 0]
    assert torch.equal(knn_predict(bank, labels, queries, 10), expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.5), (2000, 0.1)])
def test_same_predictions_as_scikit_learn(digits, k, temperature):
    bank, labels, queries, truth = digits
    reference = KNeighborsClassifier(
        n_neighbors=min(k, len(bank)),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(bank.numpy(), labels.numpy())
    predicted = knn_predict(bank, labels, queries, 10, k, temperature)
    assert torch.equal(predicted, torch.from_numpy(reference.predict(queries.numpy())))
    if k <= 20:
        assert (predicted == truth).double().mean() > 0.9


def test_chunks_do_not_change_predictions(digits, monkeypatch):
    bank, labels, queries, _ = digits
    whole = knn_predict(bank, labels, queries, 10)
    monkeypatch.setattr(knn, "_CHUNK_VALUES", 3 * len(bank))
    assert torch.equal(knn_predict(bank, labels, queries, 10), whole)


def test_memory_is_bounded_by_the_chunk(digits, monkeypatch):
    bank, labels, queries, _ = digits
    widest = 0
    topk = torch.Tensor.topk

    def watching(self, *args, **kwargs):
        nonlocal widest
        widest = max(widest, self.numel())
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(knn, "_CHUNK_VALUES", 10_000)
    monkeypatch.setattr(torch.Tensor, "topk", watching)
    knn_predict(bank, labels, queries, 10)
    assert 0 < widest <= 10_000


def test_a_vote_is_weighted_by_similarity():
    # One neighbour at cosine 1 against two at cosine .8: exp(1/T) > 2 exp(.8/T) for T < .288.
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([[3.0, 0.0]])
    assert knn_predict(bank, labels, query, 2, k=3, temperature=0.2).tolist() == [1]
    assert knn_predict(bank, labels, query, 2, k=3, temperature=0.4).tolist() == [0]


def test_a_tiny_temperature_does_not_overflow():
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels = torch.tensor([1, 0, 0])
    assert knn_predict(bank, labels, torch.tensor([[1.0, 0.0]]), 2, 3, 1e-4).tolist() == [1]


def test_half_precision_and_no_queries(digits):
    bank, labels, queries, truth = digits
    predicted = knn_predict(bank.bfloat16(), labels, queries.bfloat16(), 10)
    assert (predicted == truth).double().mean() > 0.9
    assert knn_predict(bank, labels, queries[:0], 10).shape == (0,)


@pytest.mark.parametrize(
    ("bank", "labels", "queries", "k", "message"),
    [
        (torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(1, 4), 1, "must be"),
        (torch.ones(2, 3), torch.tensor([0]), torch.ones(1, 3), 1, "labels"),
        (torch.ones(2, 3), torch.tensor([0, -1]), torch.ones(1, 3), 1, r"\[0, 2\)"),
        (torch.ones(2, 3), torch.tensor([0, 2]), torch.ones(1, 3), 1, r"\[0, 2\)"),
        (torch.ones(0, 3), torch.tensor([]).long(), torch.ones(1, 3), 1, "empty"),
        (torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(1, 3), 0, "below 1"),
    ],
)
def test_bad_input_is_refused(bank, labels, queries, k, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(bank, labels, queries, 2, k)
