"""The random numbers everything else is drawn from."""

from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from kaizen_dist.common import rng

# Known answers of philox4x32-10 from the Random123 distribution (Salmon et al.).
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_philox_gives_the_published_answers(key, counter, answer):
    assert tuple(rng.words(key, *counter)) == answer


def test_words_are_the_same_one_by_one_and_at_once():
    key = rng.key("a test", 3)
    at_once = rng.words(key, np.arange(50), 7)
    for i in range(50):
        assert np.array_equal(rng.words(key, i, 7), at_once[i])


def test_keys_of_different_parts_differ():
    keys = {rng.key(*parts) for parts in [(1, 2), (12,), ("1", 2), (1, "2"), (1, 2, 0), ()]}
    assert len(keys) == 6


def test_uniform_is_uniform():
    drawn = rng.uniform(rng.key("u"), 7, np.arange(20_000))
    assert drawn.shape == (20_000, 7)
    assert drawn.min() > 0
    assert drawn.max() < 1
    # 20,000 draws: the mean of each column has a standard error of 0.002.
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(drawn.var(axis=0) - 1 / 12).max() < 0.005
    assert np.abs(np.corrcoef(drawn.T) - np.eye(7)).max() < 0.04


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.integers(0, 2**31))
def test_permute_is_a_permutation(size, domain, seed):
    sent = rng.permute(rng.key(seed), np.arange(size), size, domain)
    assert sorted(sent.tolist()) == list(range(size))


def test_permute_takes_arrays_of_sizes_and_domains():
    key = rng.key("lanes")
    sizes = np.array([[3], [50], [1000]])
    domains = np.array([[0], [1], [2]])
    together = rng.permute(key, np.arange(3), sizes, domains)
    for lane in range(3):
        alone = rng.permute(key, np.arange(3), sizes[lane], domains[lane])
        assert np.array_equal(together[lane], alone)
    assert (together < sizes).all()


def test_permutations_differ_by_key_and_domain():
    index = np.arange(200)
    one = rng.permute(rng.key("a"), index, 200)
    assert not np.array_equal(one, rng.permute(rng.key("b"), index, 200))
    assert not np.array_equal(one, rng.permute(rng.key("a"), index, 200, 1))
    assert not np.array_equal(one, index)


def test_permute_spreads_every_position_evenly():
    # Position 0 of a range of 10, over 5,000 domains: each value about 500 times.
    sent = rng.permute(rng.key("even"), 0, 10, np.arange(5000))
    counts = np.bincount(sent, minlength=10)
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 33  # 9 degrees of freedom: one in 10,000


@pytest.mark.parametrize("size", [3, 4])
def test_all_permutations_of_a_few_come_equally_often(size):
    count = factorial(size)
    sent = rng.permute(rng.key("all", size), np.arange(size), size, np.arange(300 * count)[:, None])
    _, times = np.unique(sent, axis=0, return_counts=True)
    assert len(times) == count
    assert chisquare(times).pvalue > 1e-4


@pytest.mark.parametrize("size", [10, 17, 97])
def test_permute_parts_neighbours(size):
    sent = rng.permute(rng.key("parted", size), np.arange(size), size, np.arange(2000)[:, None])
    apart = np.bincount((np.diff(sent, axis=1) % size).reshape(-1), minlength=size)
    assert apart[0] == 0
    assert chisquare(apart[1:]).pvalue > 1e-4


def test_permute_mixes_a_range_larger_than_memory():
    size = 10**13
    sent = rng.permute(rng.key("vast"), np.arange(20_000), size)
    assert len(np.unique(sent)) == 20_000
    assert sent.min() >= 0
    assert sent.max() < size
    assert chisquare(np.bincount(sent * 50 // size, minlength=50)).pvalue > 1e-4


def test_permute_refuses_positions_outside():
    with pytest.raises(IndexError):
        rng.permute((0, 0), 5, 5)


def test_shuffle_is_a_permutation_of_any_size():
    for size in (0, 1, 2, 1000):
        assert sorted(rng.shuffle(rng.key("s"), size).tolist()) == list(range(size))
