"""Promise 1: the order is a pure function, the same for every world size."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen_dist.common.errors import UsageError
from kaizen_dist.stream.order import Order, Picks, lanes_of_rank

WORLDS = (1, 2, 4, 8)


@st.composite
def orders(draw, largest=700):
    """Any order of a small task: lanes that hold unequal numbers of samples, remainders that
    fill no step, past tasks with fewer images than there are lanes, and none at all."""
    lanes = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16]))
    batch = lanes * draw(st.integers(1, 4))
    past = tuple(draw(st.lists(st.integers(0, 40), max_size=4)))
    return Order(
        seed=draw(st.integers(0, 2**63 - 1)),
        task=len(past),
        size=draw(st.integers(batch, largest)),
        batch_size=batch,
        lanes=lanes,
        replay_sizes=past if any(past) else (),
        replay_batch_size=lanes * draw(st.integers(1, 3)),
        replay_order=draw(st.sampled_from([1, 2])),
    )


def steps(order):
    return st.tuples(st.integers(0, 10**6), st.integers(0, order.steps_per_epoch - 1))


def by_field(picks: Picks):
    return [picks.task, picks.row, picks.draw, picks.replay]


def share(size, lanes, lane):
    """The contiguous range of rows that is a lane's, cut in whole numbers."""
    return range(size * lane // lanes, size * (lane + 1) // lanes)


@settings(max_examples=80, deadline=None)
@given(orders(), st.data())
def test_every_world_size_sees_the_same_batch(order, data):
    epoch, step = data.draw(steps(order))
    alone = by_field(order.picks(epoch, step))
    for world in WORLDS:
        if order.lanes % world == 0:
            ranks = [
                by_field(order.picks(epoch, step, lanes_of_rank(order.lanes, rank, world)))
                for rank in range(world)
            ]
            for joined, whole in zip(zip(*ranks, strict=True), alone, strict=True):
                assert np.array_equal(np.concatenate(joined), whole)


@settings(max_examples=30, deadline=None)
@given(orders(), st.data())
def test_a_step_does_not_depend_on_those_before(order, data):
    epoch, step = data.draw(steps(order))
    afresh = Order(**vars(order)).picks(epoch, step)
    for earlier in data.draw(st.lists(steps(order), max_size=5)):
        order.picks(*earlier)
    for ours, theirs in zip(by_field(order.picks(epoch, step)), by_field(afresh), strict=True):
        assert np.array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 10**6))
def test_a_sample_comes_at_most_once_an_epoch_and_only_from_its_lane(order, epoch):
    seen = []
    for step in range(order.steps_per_epoch):
        picks = order.picks(epoch, step)
        rows = picks.row[~picks.replay].reshape(order.lanes, -1)
        for lane, own in enumerate(rows.tolist()):
            assert len(own) == order.batch_size // order.lanes
            assert all(row in share(order.size, order.lanes, lane) for row in own)
        seen += rows.reshape(-1).tolist()
    assert len(seen) == len(set(seen)) == order.steps_per_epoch * order.batch_size


@settings(max_examples=25, deadline=None)
@given(orders(largest=120), st.integers(0, 1000))
def test_every_sample_comes_over_the_epochs(order, first):
    missing = set(range(order.size))
    # An epoch leaves out less than half of a lane: a sample misses 60 in a row once in 10^18.
    for epoch in range(first, first + 60):
        for step in range(order.steps_per_epoch):
            picks = order.picks(epoch, step)
            missing -= set(picks.row[~picks.replay].tolist())
        if not missing:
            return
    raise AssertionError(f"never seen: {missing}")


def test_epochs_tasks_and_seeds_have_orders_of_their_own():
    def rows(seed, task, epoch):
        return Order(seed, task, 400, 100, 4).picks(epoch, 0).row.tolist()

    base = rows(0, 0, 0)
    assert base == rows(0, 0, 0)
    assert base not in (rows(1, 0, 0), rows(0, 1, 0), rows(0, 0, 1))


def test_a_batch_lies_lane_by_lane_task_before_replay():
    order = Order(3, 1, 400, 8, 4, replay_sizes=(40,), replay_batch_size=4)
    assert order.picks(0, 0).replay.tolist() == [False, False, True] * 4


def test_world_sizes_that_do_not_fit_are_refused_with_those_that_do():
    assert list(lanes_of_rank(12, 2, 3)) == [8, 9, 10, 11]
    with pytest.raises(UsageError, match="1, 2, 3, 4, 6, 12"):
        lanes_of_rank(12, 0, 5)


def test_a_task_smaller_than_a_batch_is_refused():
    with pytest.raises(UsageError, match="task 3 has 50 training images"):
        Order(0, 3, 50, 64, 8)


def test_a_step_beyond_the_epoch_is_refused():
    with pytest.raises(IndexError):
        Order(0, 0, 64, 64, 8).picks(0, 1)


def peak_of_a_step(size, past):
    """Bytes that one step of a large batch allocates at most, and its picks."""
    order = Order(0, len(past), size, 4096, 1024, past, 1024 if past else 0)
    order.picks(0, 0)
    tracemalloc.start()
    try:
        picks = order.picks(7, order.steps_per_epoch - 1)
        return tracemalloc.get_traced_memory()[1], picks
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("past", [(), (1_000_000, 1_000_000)])
def test_a_hundred_million_samples_cost_no_memory(past):
    small, _ = peak_of_a_step(1_000_000, past)
    large, picks = peak_of_a_step(100_000_000, past)
    assert large < 4e6  # a bit for each of the samples would be 12 MB
    assert large < 1.1 * small
    rows = picks.row[~picks.replay].reshape(1024, 4)
    assert len(np.unique(rows)) == 4096
    for lane, own in enumerate(rows.tolist()):
        assert all(row in share(100_000_000, 1024, lane) for row in own)
