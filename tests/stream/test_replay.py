"""The replay store: what is kept, and that it can be read back."""

from pathlib import Path

import numpy as np
import pytest

from kaizen_dist.common.errors import UsageError
from kaizen_dist.stream.replay import ReplayStore, choose, herd


class Labelled:
    """All of a split that a choice looks at."""

    def __init__(self, labels, ids=None):
        self.labels = np.asarray(labels, dtype=np.int64)
        self.ids = np.arange(len(labels)) if ids is None else ids


@pytest.fixture(scope="module")
def oracle():
    """Choices of the paper's reference implementation on 2,000 labels in 5 tasks."""
    with np.load(Path(__file__).parents[1] / "golden" / "replay.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("fraction", ["0.05", "0.029"])
def test_first_keeps_what_the_reference_keeps(oracle, fraction):
    targets, tasks = oracle["targets"], oracle["tasks"]
    kept = []
    for previous, classes in enumerate(tasks[:4], start=1):
        ids = np.flatnonzero(np.isin(targets, classes))
        # The order within a task's shards must not matter to `first`.
        ids = np.random.default_rng(0).permutation(ids)
        split = Labelled(targets[ids], ids)
        kept += split.ids[choose(split, float(fraction), "first", 0, previous)].tolist()
        name = f"idx_p{fraction}_prevtasks{previous}"
        if name in oracle:
            assert sorted(kept) == sorted(oracle[name].tolist())


def test_every_class_keeps_its_share_and_at_least_one():
    labels = np.repeat([3, 5, 9], [1000, 150, 7])
    rows = choose(Labelled(labels), 0.01, "random", 0, 0)
    assert np.array_equal(rows, np.sort(rows))
    assert np.bincount(labels[rows], minlength=10)[[3, 5, 9]].tolist() == [10, 1, 1]


def test_unlabelled_images_are_kept_like_a_class():
    labels = np.array([-1] * 400 + [2] * 100)
    rows = choose(Labelled(labels), 0.1, "random", 0, 0)
    assert (labels[rows] == -1).sum() == 40
    assert (labels[rows] == 2).sum() == 10


def test_random_is_uniform_seeded_and_of_each_task():
    labels = np.zeros(200, int)
    draws = [choose(Labelled(labels), 0.1, "random", seed, 0) for seed in range(400)]
    counts = np.bincount(np.concatenate(draws), minlength=200)
    assert ((counts - 40) ** 2 / 40).sum() < 290  # 199 degrees of freedom: one in 50,000
    again = choose(Labelled(labels), 0.1, "random", 7, 0)
    assert np.array_equal(draws[7], again)
    assert not np.array_equal(again, choose(Labelled(labels), 0.1, "random", 7, 1))


def test_herding_takes_the_sample_nearest_to_the_mean_first():
    # Unit vectors at these angles; their mean points to about 27 degrees.
    angles = np.deg2rad([0, 20, 30, 58])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # By hand: 30 is nearest to the mean; with it, 20 gives the mean (25) nearest to 27.
    assert herd(features, 2).tolist() == [2, 1]
    assert sorted(herd(features, 4).tolist()) == [0, 1, 2, 3]


def test_herding_works_class_by_class_and_needs_features():
    labels = np.repeat([0, 1], 50)
    features = np.random.default_rng(0).normal(size=(100, 4))
    rows = choose(Labelled(labels), 0.1, "herding", 0, 0, features)
    assert labels[rows].tolist() == [0] * 5 + [1] * 5
    with pytest.raises(UsageError, match="herding"):
        choose(Labelled(labels), 0.1, "herding", 0, 0)


def test_the_store_gives_back_bytes_labels_and_ids(tmp_path, digits):
    split = digits.split(2, "train")
    rows = choose(split, 0.2, "random", 0, 2)
    store = ReplayStore(tmp_path)
    for rank in (0, 1):
        store.write_shards(2, split, rows, rank, 2)
    store.commit(2, len(rows))
    files = ["replay-000000.tar", "replay.index.npy", "replay.json"]
    assert sorted(path.name for path in store.folder(2).iterdir()) == files
    kept = store.split(2)
    assert len(kept) == len(rows)
    for name in ("id", "label", "height", "width"):
        assert np.array_equal(kept.index[name], split.index[name][rows])
    for k in range(len(rows)):
        assert kept.read(k) == split.read(int(rows[k]))


def test_writing_the_store_again_replaces_it(tmp_path, digits):
    split = digits.split(0, "train")
    store = ReplayStore(tmp_path)
    for count in (9, 4):
        store.discard_unfinished(0)
        store.write_shards(0, split, np.arange(count), 0, 1)
        store.commit(0, count)
        assert len(store.split(0)) == count


@pytest.mark.parametrize("rule", ["first", "random", "herding"])
def test_what_does_not_decode_is_as_good_as_not_there(digits, rule):
    split = digits.split(0, "train")
    features = np.random.default_rng(0).normal(size=(len(split), 4))
    bad = choose(split, 0.05, rule, 0, 0, features)
    kept = choose(split, 0.05, rule, 0, 0, features, bad)
    assert not set(kept) & set(bad)
    left = np.bincount(np.delete(split.labels, bad))
    assert np.bincount(split.labels[kept]).tolist() == [int(0.05 * n) for n in left]
