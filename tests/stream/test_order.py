"""Promise 1: the order is a pure function, the same for every world size."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kaizen_dist.errors import UsageError
from kaizen_dist.stream.order import Order, lanes_of_rank


@st.composite
def orders(draw):
    lanes = draw(st.sampled_from([1, 2, 4, 8, 16]))
    batch = lanes * draw(st.integers(1, 4))
    size = draw(st.integers(batch, 700))
    past = tuple(draw(st.lists(st.integers(1, 40), max_size=4)))
    order = {
        "seed": draw(st.integers(0, 2**31)),
        "task": len(past),
        "size": size,
        "batch_size": batch,
        "lanes": lanes,
        "replay_sizes": past,
        "replay_batch_size": lanes * draw(st.integers(1, 3)),
    }
    assume((size // lanes) // (batch // lanes) > 0)
    return Order(**order)


def together(order, epoch, step, world):
    parts = [
        order.picks(epoch, step, lanes_of_rank(order.lanes, rank, world)) for rank in range(world)
    ]
    fields = ("task", "row", "draw", "replay")
    return [np.concatenate([getattr(part, field) for part in parts]) for field in fields]


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(0, 5), st.data())
def test_every_world_size_sees_the_same_batch(order, epoch, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    alone = together(order, epoch, step, 1)
    for world in (2, 4, 8, 16):
        if order.lanes % world == 0:
            for ours, theirs in zip(together(order, epoch, step, world), alone, strict=True):
                assert np.array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 3))
def test_a_sample_comes_at_most_once_an_epoch_and_only_from_its_lane(order, epoch):
    seen = []
    for lane in range(order.lanes):
        for step in range(order.steps_per_epoch):
            picks = order.picks(epoch, step, [lane])
            rows = picks.row[~picks.replay]
            assert len(rows) == order.batch_size // order.lanes
            low, high = (order.size * (lane + k) // order.lanes for k in (0, 1))
            assert ((low <= rows) & (rows < high)).all()
            seen += rows.tolist()
    assert len(seen) == len(set(seen)) == order.steps_per_epoch * order.batch_size


def test_every_sample_comes_over_the_epochs():
    order = Order(seed=1, task=0, size=53, batch_size=16, lanes=4)
    seen = {
        int(row)
        for epoch in range(30)
        for step in range(order.steps_per_epoch)
        for row in order.picks(epoch, step).row
    }
    assert seen == set(range(53))


def test_epochs_tasks_and_seeds_have_orders_of_their_own():
    def rows(seed, task, epoch):
        return Order(seed, task, 400, 100, 4).picks(epoch, 0).row.tolist()

    base = rows(0, 0, 0)
    assert base == rows(0, 0, 0)
    assert base not in (rows(1, 0, 0), rows(0, 1, 0), rows(0, 0, 1))


def test_replay_goes_round_each_lanes_share_evenly():
    # 2 lanes; lane 0 holds rows 0-2 of task 0 and 0-1 of task 1, lane 1 rows 3-5 and 2-3.
    order = Order(3, 2, 400, 8, 2, replay_sizes=(6, 4), replay_batch_size=2)
    drawn = {0: [], 1: []}
    for position in range(50):
        epoch, step = divmod(position, order.steps_per_epoch)
        for lane in (0, 1):
            picks = order.picks(epoch, step, [lane])
            replayed = picks.replay
            drawn[lane] += zip(
                picks.task[replayed].tolist(),
                picks.row[replayed].tolist(),
                picks.draw[replayed].tolist(),
                strict=True,
            )
    shares = {
        0: {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)},
        1: {(0, 3), (0, 4), (0, 5), (1, 2), (1, 3)},
    }
    for lane, share in shares.items():
        for start in range(0, 50, 5):
            one_round = drawn[lane][start : start + 5]
            assert {(task, row) for task, row, _ in one_round} == share
            assert {draw for _, _, draw in one_round} == {start // 5 * 2 + lane}


def test_lanes_share_images_where_there_are_fewer_than_lanes():
    order = Order(3, 1, 400, 8, 4, replay_sizes=(2,), replay_batch_size=4)
    picks = order.picks(0, 0)
    assert picks.row[picks.replay].tolist() == [0, 0, 1, 1]
    # The same image in one batch, but never the same view of it.
    assert len(set(picks.draw[picks.replay].tolist())) == 4


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


def test_a_hundred_million_samples_cost_no_memory():
    order = Order(0, 0, 100_000_000, 4096, 1024)
    picks = order.picks(7, order.steps_per_epoch - 1)
    assert len(set(picks.row.tolist())) == 4096
    lane = picks.row * 1024 // 100_000_000
    assert np.array_equal(lane, np.repeat(np.arange(1024), 4))
