"""Every formula against the reference implementation, and against lightly's where they agree."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.loss.vicreg_loss import covariance_loss, variance_loss

from kaizen_dist.learner import losses
from kaizen_dist.learner.gather import ALONE
from kaizen_dist.learner.methods.vicreg import VICReg, VICRegSettings


def pair(rows=10, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)


def close(ours, theirs):
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-9, atol=1e-9)


def test_regression_loss(golden):
    entry = golden("byol_loss_func")
    leaves = entry.inputs()
    entry.agrees(losses.regression_loss(leaves["p"], leaves["z"]), **leaves)


def test_negative_cosine_is_the_regression_shifted_and_halved(golden):
    entry = golden("byol_loss_func")
    leaves = entry.inputs()
    entry.agrees(2 + 2 * losses.negative_cosine(leaves["p"], leaves["z"]), **leaves)
    a, b = pair()
    close(losses.negative_cosine(a, b), NegativeCosineSimilarity()(a, b))


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_nt_xent(golden, temperature):
    entry = golden(f"simclr_loss_func_T{temperature}")
    leaves = entry.inputs()
    entry.agrees(losses.nt_xent(leaves["z1"], leaves["z2"], temperature, ALONE), **leaves)
    a, b = pair()
    close(losses.nt_xent(a, b, temperature, ALONE), NTXentLoss(temperature)(a, b))


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_contrastive_distillation(golden, temperature):
    """The reference's one-sided function, taken both ways, is its symmetrised one."""
    entry = golden(f"simclr_distill_loss_func_T{temperature}")
    p1, p2, z1, z2 = (entry[f"in/{name}"] for name in ("p1", "p2", "z1", "z2"))
    both = losses.contrastive_distillation(p1, p2, z1, z2, temperature, ALONE)
    swapped = losses.contrastive_distillation(z1, z2, p1, p2, temperature, ALONE)
    close(both, swapped)
    p, z = F.normalize(torch.cat([p1, p2]), dim=1), F.normalize(torch.cat([z1, z2]), dim=1)
    back = -((z @ p.T) / temperature).log_softmax(1).diagonal().mean()
    close(2 * both - back, entry["value"])


@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_info_nce(golden, temperature):
    entry = golden(f"moco_loss_func_T{temperature}")
    leaves = entry.inputs()
    value = losses.info_nce(leaves["query"], leaves["key"], leaves["queue"].T, temperature)
    entry.agrees(value, query=leaves["query"], key=leaves["key"])
    assert leaves["queue"].grad is None


def test_info_nce_as_lightlys():
    query, key = F.normalize(pair(), dim=-1)
    theirs = NTXentLoss(0.2, memory_bank_size=(15, 6)).double()
    theirs.memory_bank.bank = F.normalize(pair(15, seed=1)[0], dim=-1)
    close(losses.info_nce(query, key, theirs.memory_bank.bank, 0.2), theirs(query, key))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_in_batch_info_nce_written_out(temperature):
    """Value, and gradient by the first view's queries: 2 / n (softmax k - k) along the sphere."""
    q1, q2 = pair()
    key1, key2 = pair(seed=1)

    def unit(rows):
        return [row / np.linalg.norm(row) for row in rows.numpy()]

    def ctr(queries, keys):
        rows = []
        for i, query in enumerate(queries):
            similar = [np.exp(query @ key / temperature) for key in keys]
            rows.append(-np.log(similar[i] / sum(similar)))
        return 2 * temperature * sum(rows) / len(rows)

    expected = ctr(unit(q1), unit(key2)) + ctr(unit(q2), unit(key1))
    q1.requires_grad_()
    value = losses.in_batch_info_nce(q1, q2, key1, key2, temperature, ALONE)
    close(value, torch.tensor(expected))
    value.backward()
    query, key = np.array(unit(q1.detach())), np.array(unit(key2))
    weights = np.exp(query @ key.T / temperature)
    pull = 2 / len(key) * (weights / weights.sum(1, keepdims=True) @ key - key)
    along = pull - (pull * query).sum(1, keepdims=True) * query
    close(q1.grad, torch.from_numpy(along) / q1.detach().norm(dim=1, keepdim=True))


def test_in_batch_info_nce_is_mocos_with_the_other_keys_for_a_queue():
    """The reference agrees on MoCo's; each query has a queue of its own here."""
    query, key = F.normalize(pair(), dim=-1)
    rows = []
    for i in range(len(key)):
        others = torch.cat([key[:i], key[i + 1 :]])
        rows.append(losses.info_nce(query[i : i + 1], key[i : i + 1], others, 0.2))
    both = losses.in_batch_info_nce(query, query, key, key, 0.2, ALONE)
    close(both, 2 * 0.4 * torch.stack(rows).mean())


def test_vicreg_terms(golden):
    for name, function in (("variance", losses.variance), ("covariance", losses.covariance)):
        entry = golden(f"vicreg_{name}")
        leaves = entry.inputs()
        entry.agrees(function(leaves["z1"]) + function(leaves["z2"]), **leaves)
    a, _ = pair()
    close(losses.variance(a), variance_loss(a, eps=1e-4))
    close(losses.covariance(a), covariance_loss(a))


def test_vicreg(golden):
    entry = golden("vicreg_loss_func")
    leaves = entry.inputs()
    method = VICReg(4, VICRegSettings(hidden=4, dim=8))
    entry.agrees(method.loss(leaves["z1"], leaves["z2"], None, ALONE), **leaves)
    a, b = pair()
    # Lightly takes the mean of the views' variance terms where the reference takes their sum.
    close(method.loss(a, b, None, ALONE), VICRegLoss(25.0, 50.0, 1.0, eps=1e-4)(a, b))


@pytest.mark.parametrize(
    ("name", "scale"), [("barlow_loss_func", 0.025), ("barlow_loss_func_scale0.1", 0.1)]
)
def test_cross_correlation_loss(golden, name, scale):
    entry = golden(name)
    leaves = entry.inputs()
    value = losses.cross_correlation_loss(leaves["z1"], leaves["z2"], 5e-3, scale, ALONE)
    entry.agrees(value, **leaves)
    a, b = pair()
    theirs = BarlowTwinsLoss(lambda_param=5e-3)(a, b)
    close(losses.cross_correlation_loss(a, b, 5e-3, scale, ALONE), scale * theirs)


def test_classification_loss(golden):
    entry = golden("classifier_ce_two_crops_sum")
    leaves = entry.inputs()
    logits = torch.stack([leaves["l1"], leaves["l2"]])
    labels = entry["labels"]
    assert (labels == -1).any()
    entry.agrees(losses.classification_loss(logits, labels, ALONE), **leaves)


def test_classification_loss_without_labels_is_zero_with_a_graph():
    logits = torch.randn(2, 4, 3, requires_grad=True)
    loss = losses.classification_loss(logits, torch.full((4,), -1), ALONE)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert np.array_equal(logits.grad.numpy(), np.zeros((2, 4, 3)))
