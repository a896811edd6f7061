"""Linear CKA by hand, by its kernels, and by what it must not see."""

import math

import pytest
import torch

from kaizen_dist.evaluation.analysis import linear_cka


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_by_hand():
    """One feature each: the square of the correlation. (1, 2, 3) and (1, 3, 2) correlate by 1/2."""
    first, second = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    assert linear_cka(first, second) == pytest.approx(0.25)


def test_over_kernels_of_images():
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with centred Gram matrices, as it is defined."""
    x, y = noise(30, 5), noise(30, 8, seed=1)
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, m = (centre @ f @ f.T @ centre for f in (x, y))
    by_kernels = (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(x, y) == pytest.approx(float(by_kernels))


def test_rotation_scale_and_shift_are_not_seen_but_more_is():
    x = noise(200, 6)
    rotation = torch.linalg.qr(noise(6, 6, seed=2)).Q
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1.0)
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.8
    assert linear_cka(x, noise(200, 6, seed=3)) < 0.1
    y = noise(200, 4, seed=4)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


def test_what_does_not_vary_or_fit():
    assert math.isnan(linear_cka(torch.ones(4, 2), noise(4, 2)))
    with pytest.raises(ValueError, match="not of the same images"):
        linear_cka(noise(4, 2), noise(5, 2))
