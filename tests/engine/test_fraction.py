"""distill.fraction: the same images are taught at every world size."""

import pytest
import torch
from spread import begin as begin_task
from spread import build, on_ranks, train
from test_worlds import config_of

from kaizen_dist.learner.distill import DistilledRows
from kaizen_dist.stream.manifest import Stream

ACCUMULATE = {"epochs": 10, "batch_size": 16, "accumulate": 2}


def learn(process, root: str):
    """Losses of three steps with a teacher, by what is configured."""
    stream, found = Stream.open(root), {}
    for name, method, sections in (
        ("byol", "byol", {}),
        ("simclr", "simclr", {}),
        ("micro-batches", "simclr", {"train": ACCUMULATE}),
    ):
        config = config_of(method, distill={"hidden": 20, "fraction": 0.5}, **sections)
        engine = build(config, stream, process, double=True)
        begin_task(engine, stream, 1)
        found[name] = train(engine, stream, 1, range(3))
    return found


def test_losses_are_those_of_one_rank(ranks, digits):
    (alone,) = ranks(on_ranks, 1, learn, str(digits.root))
    for theirs in ranks(on_ranks, 2, learn, str(digits.root)):
        for name, losses in alone.items():
            for ours, expected in zip(theirs[name], losses, strict=True):
                assert expected["kd_features"] != 0
                assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9), name


def test_the_first_of_every_lane_and_of_its_replay():
    """4 lanes of 4 images and 2 replayed; a third of either, rounded up, is 2 and 1."""
    config = config_of(
        "byol",
        distill={"fraction": 1 / 3},
        train={"epochs": 10, "batch_size": 16, "lanes": 4},
    )
    rows = torch.arange(24)[None]
    alone = DistilledRows(config, 1)(rows, 1)[0].tolist()
    assert alone == [0, 1, 4, 6, 7, 10, 12, 13, 16, 18, 19, 22]
    shared = [
        DistilledRows(config, 2)(rows[:, part], 1)[0].tolist()
        for part in (range(12), range(12, 24))
    ]
    assert shared[0] + shared[1] == alone
    without_replay = DistilledRows(config, 1)(torch.arange(16), 0).tolist()
    assert without_replay == [0, 1, 4, 5, 8, 9, 12, 13]


def test_all_rows_are_taught_as_they_come():
    rows = torch.arange(7)
    assert DistilledRows(config_of("byol"), 1)(rows, 0) is rows


def test_rows_that_are_not_whole_lanes_are_a_mistake():
    with pytest.raises(ValueError, match="8 lanes"):
        DistilledRows(config_of("byol", distill={"fraction": 0.5}), 1)(torch.arange(25), 0)
