"""A thousand ranks for 24 hours, in the order alone: no sample twice in an epoch, no lane
empty, no rank reading another lane's rows of the task, no replayed image twice in a step.

A day at 10 steps a second is 864,000 steps of 32,000 task samples, 3 x 10^10 picks. The order
has no state, so a day is not one long computation but as many independent ones: what a step
picks depends on its own (epoch, step), and each lane's on that lane. Three things then make
a whole day right, and each is shown by a sample of the day that would fail if it were wrong:

- within a step, every lane takes its number from its own range, and all replay different images:
  all ranks, at steps from the whole day;
- within an epoch, the steps of a lane take different positions of one bijection of its range:
  whole epochs, of all ranks for a smaller task, of some ranks for the larger one;
- this holds for every epoch's own key and lane: the epochs and lanes are spread over the day.
"""

from dataclasses import replace

import numpy as np
import pytest

from kaizen_dist.stream.order import Order, lanes_of_rank

RANKS = 1000
DAY = 24 * 60 * 60 * 10
"""Steps in 24 hours."""
LARGE = Order(
    seed=2,
    task=3,
    size=100_000_000 + 617,  # lanes of unequal length, and a remainder in each epoch
    batch_size=32 * RANKS,
    lanes=RANKS,
    replay_sizes=(1_000_000, 999_999, 300),  # the last one: fewer images than lanes
    replay_batch_size=4 * RANKS,
)
IMAGENET = replace(LARGE, size=1_281_167)


def bounds(size):
    """Where the lanes' ranges begin [RANKS + 1], in whole numbers of any length."""
    return np.array([size * lane // RANKS for lane in range(RANKS + 1)])


def check_step(order, epoch, step):
    """Of every rank 32 different rows of its own range, and 4 replayed ones that no rank has."""
    picks = order.picks(epoch, step)
    rows, tasks = picks.row.reshape(RANKS, 36), picks.task.reshape(RANKS, 36)
    assert (tasks[:, :32] == order.task).all()
    own = np.sort(rows[:, :32], axis=1)
    start, end = bounds(order.size)[:-1], bounds(order.size)[1:]
    assert (own[:, 0] >= start).all()
    assert (own[:, -1] < end).all()
    assert (np.diff(own, axis=1) > 0).all(), "a sample twice in a step"
    replayed = np.stack([tasks[:, 32:], rows[:, 32:]]).reshape(2, -1)
    assert (replayed[1] < np.array(order.replay_sizes)[replayed[0]]).all()
    assert len(np.unique(replayed, axis=1).T) == 4 * RANKS, "a replayed image twice in a step"


def whole_epoch(order, epoch, lanes):
    """How often each of the lanes' rows comes in an epoch, [rows of all of them]."""
    times = np.zeros(order.size, dtype=np.uint8)
    for step in range(order.steps_per_epoch):
        picks = order.picks(epoch, step, lanes)
        rows = picks.row[~picks.replay]
        times[rows] += 1
        assert len(rows) == 32 * len(lanes)
    own = [np.arange(*bounds(order.size)[[lane, lane + 1]]) for lane in lanes]
    total = times.sum(dtype=np.int64)
    counted = times[np.concatenate(own)]
    assert counted.sum(dtype=np.int64) == total, "rows of another lane"
    return counted


def test_all_ranks_at_steps_of_the_whole_day():
    for at in np.linspace(0, DAY - 1, 100).astype(int).tolist():
        check_step(LARGE, *divmod(at, LARGE.steps_per_epoch))


def test_a_rank_alone_is_given_its_part_of_the_whole():
    whole = LARGE.picks(276, 1499)
    for rank in range(0, RANKS, 9):
        alone = LARGE.picks(276, 1499, lanes_of_rank(LARGE.lanes, rank, RANKS))
        part = slice(36 * rank, 36 * (rank + 1))
        for field in ("task", "row", "draw", "replay"):
            assert np.array_equal(getattr(alone, field), getattr(whole, field)[part])


@pytest.mark.parametrize("epoch", [0, DAY // IMAGENET.steps_per_epoch])
def test_all_ranks_over_a_whole_epoch_of_imagenet(epoch):
    times = whole_epoch(IMAGENET, epoch, range(RANKS))
    assert times.max() == 1
    assert times.sum() == IMAGENET.steps_per_epoch * IMAGENET.batch_size


def test_some_ranks_over_a_whole_epoch_of_a_hundred_million():
    lanes = [0, 1, 499, 998, 999]
    alone = replace(LARGE, replay_sizes=())
    times = whole_epoch(alone, DAY // LARGE.steps_per_epoch, lanes)
    assert times.max() == 1
    assert times.sum() == LARGE.steps_per_epoch * 32 * len(lanes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_ranks_over_a_whole_epoch_and_every_minute_of_the_day():
    """The long form: all 10^8 picks of one epoch, and all ranks at 1,440 steps of the day.

    What it leaves out are more epochs of the same: each costs as much again, and differs in
    nothing but a key, of which the other tests try some.
    """
    times = whole_epoch(LARGE, 137, range(RANKS))
    assert times.max() == 1
    assert times.sum(dtype=np.int64) == LARGE.steps_per_epoch * LARGE.batch_size
    for at in range(0, DAY, 600):
        check_step(LARGE, *divmod(at, LARGE.steps_per_epoch))
