"""Promise 1 for replay: every kept image equally often, and old runs as they always drew."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen_dist.common import rng
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay_order import NEWEST, VERSIONS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "replay_order_1.json").read_text())
"""What commit 4443885 drew, before there were versions."""
TWENTY = Order(0, 1, 16 * 40, 16, 16, replay_sizes=(20,), replay_batch_size=16)
"""20 images in 16 lanes, in epochs of 40 steps."""


@st.composite
def orders(draw):
    """Any order that replays: 1 to 1,000 images of up to four past tasks in up to 64 lanes."""
    lanes = draw(st.integers(1, 64))
    total = draw(st.one_of(st.integers(1, 30), st.integers(1, 1000)))
    cuts = draw(st.lists(st.integers(0, total), max_size=3))
    kept = tuple(int(n) for n in np.diff([0, *sorted(cuts), total]))
    return Order(
        seed=draw(st.integers(0, 2**63 - 1)),
        task=len(kept),
        size=lanes * draw(st.integers(1, 25)),
        batch_size=lanes,
        lanes=lanes,
        replay_sizes=kept,
        replay_batch_size=lanes * draw(st.integers(1, 4)),
    )


def images(order: Order, epoch: int, step: int, lanes=None) -> tuple[np.ndarray, np.ndarray]:
    """The images that a step replays, numbered through the past tasks, and their rounds."""
    picks = order.picks(epoch, step, lanes)
    task, row = picks.task[picks.replay], picks.row[picks.replay]
    assert (row < np.asarray(order.replay_sizes)[task]).all()
    return np.cumsum([0, *order.replay_sizes])[task] + row, picks.draw[picks.replay]


def all_draws(order: Order, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """`images` of every step of the first epochs, [epochs, steps, replay batch], at once."""
    steps = np.arange(epochs * order.steps_per_epoch)[:, None, None]
    lanes, taken = np.arange(order.lanes), np.arange(order.replay_batch_size // order.lanes)
    task, row, rounds = order.replay.draw(steps, taken, lanes)
    shape = epochs, order.steps_per_epoch, -1
    drawn = (np.cumsum([0, *order.replay_sizes])[task] + row).reshape(shape)
    return drawn, rounds.reshape(shape)


def spread(counts: np.ndarray) -> int:
    """By how much the counts of two images differ at most, of all rows [..., images]."""
    return int(np.ptp(counts, axis=-1).max())


@settings(max_examples=100, deadline=None)
@given(orders(), st.data())
def test_counts_differ_by_at_most_one_in_batch_epoch_and_task(order, data):
    drawn, rounds = all_draws(order, 3)
    one_by_one = np.eye(sum(order.replay_sizes), dtype=int)
    batches = one_by_one[drawn].sum(axis=2)
    assert batches.shape[:2] == (3, order.steps_per_epoch)
    assert spread(batches) <= 1, "in a batch"
    assert spread(batches.sum(axis=1)) <= 1, "in an epoch"
    assert spread(batches.reshape(-1, len(one_by_one)).cumsum(axis=0)) <= 1, "up to a step"
    views = np.stack([drawn, rounds]).reshape(2, -1)
    assert len(np.unique(views, axis=1).T) == drawn.size, "the same views of an image twice"
    at = data.draw(st.integers(0, 2)), data.draw(st.integers(0, order.steps_per_epoch - 1))
    assert np.array_equal(images(order, *at), (drawn[at], rounds[at]))


@settings(max_examples=25, deadline=None)
@given(orders(), st.integers(0, 10**6), st.data())
def test_far_on_a_batch_is_as_even_at_every_world_size(order, epoch, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    drawn, rounds = images(order, epoch, step)
    assert np.ptp(np.bincount(drawn, minlength=sum(order.replay_sizes))) <= 1
    fits = [n for n in range(1, order.lanes + 1) if order.lanes % n == 0]
    for world in data.draw(st.sets(st.sampled_from(fits), max_size=2)):
        ranks = (lanes_of_rank(order.lanes, rank, world) for rank in range(world))
        parts = [images(order, epoch, step, lanes) for lanes in ranks]
        for joined, whole in zip(zip(*parts, strict=True), (drawn, rounds), strict=True):
            assert np.array_equal(np.concatenate(joined), whole)


@settings(max_examples=20, deadline=None)
@given(orders(), st.integers(0, 10**6), st.data())
def test_a_rank_computes_its_own_draws_alone(order, epoch, data):
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    lane = data.draw(st.integers(0, order.lanes - 1))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        permute = rng.permute
        patch.setattr(
            rng, "permute", lambda k, at, *a: asked.append(np.size(at)) or permute(k, at, *a)
        )
        order.picks(epoch, step, [lane])
    own = order.replay_batch_size // order.lanes
    assert asked == [1, own, own]


def test_twenty_images_in_sixteen_lanes():
    """The worst case of the order before: a lane that has two images draws each half as often as
    one that has one."""
    before = replace(TWENTY, replay_order=1)
    drawn = np.concatenate([images(before, 0, step)[0] for step in range(40)])
    counts = np.bincount(drawn)
    assert (counts.min(), counts.mean(), counts.max()) == (20, 32, 40)
    assert np.bincount(all_draws(TWENTY, 1)[0].ravel()).tolist() == [32] * 20


def test_every_image_meets_every_other_and_every_lane():
    """Where no round ends with a batch, and no epoch with a round."""
    order = Order(0, 1, 8 * 39, 8, 8, replay_sizes=(30, 20), replay_batch_size=16)
    drawn = all_draws(order, 50)[0].reshape(-1, 16)
    there = np.zeros((len(drawn), 50))
    np.put_along_axis(there, drawn, 1, axis=1)
    pairs = (there.T @ there)[~np.eye(50, dtype=bool)]
    assert pairs.min() > pairs.mean() / 2
    assert pairs.max() < pairs.mean() * 3
    for of_lane in np.split(drawn, 8, axis=1):
        assert set(of_lane.ravel().tolist()) == set(range(50))


def test_rounds_epochs_tasks_and_seeds_have_orders_of_their_own():
    order = Order(0, 1, 4 * 16, 4, 4, replay_sizes=(32,), replay_batch_size=4)

    def a_round(order, number):
        return all_draws(order, 2)[0].ravel()[32 * number :][:32].tolist()

    own = [a_round(order, 0), a_round(order, 1), a_round(order, 2)]
    own += [a_round(replace(order, seed=1), 0), a_round(replace(order, task=2), 0)]
    assert all(sorted(drawn) == list(range(32)) for drawn in own)
    assert len({tuple(drawn) for drawn in own}) == 5


def test_any_lane_may_draw_any_image():
    rows = Order(0, 2, 64, 4, 4, (5, 3), 4).lane_rows([1])
    assert {task: each.tolist() for task, each in rows.items()} == {
        0: [0, 1, 2, 3, 4],
        1: [0, 1, 2],
        2: list(range(16, 32)),
    }


# ---- the first version ------------------------------------------------------------------


def of_first_version(case: dict) -> Order:
    given = case["order"] | {"replay_sizes": tuple(case["order"]["replay_sizes"])}
    return Order(**given, replay_order=1)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['order']['lanes']} lanes")
def test_the_first_version_draws_what_it_drew(case):
    order = of_first_version(case)
    for at in case["steps"]:
        epoch, step = at["epoch"], at["step"]
        picks = order.picks(epoch, step)
        for name in ("task", "row", "draw"):
            assert getattr(picks, name)[picks.replay].tolist() == at[name]
        after = order.following(epoch, step, order.lanes - 1, True, np.arange(6))
        assert [a.tolist() for a in (after.task, after.row, after.draw)] == at["following"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['order']['lanes']} lanes")
def test_in_the_first_version_a_lane_draws_its_share_of_every_past_task(case):
    order = of_first_version(case)
    for lane in range(order.lanes):
        shares = order.lane_rows([lane])
        for task, kept in enumerate(order.replay_sizes):
            start, end = (kept * n // order.lanes for n in (lane, lane + 1))
            # Where a task keeps fewer images than there are lanes, several share one.
            assert shares[task].tolist() == list(range(start, max(end, start + bool(kept))))
        picks = order.picks(7, 0, [lane])
        drawn = zip(
            picks.task[picks.replay].tolist(), picks.row[picks.replay].tolist(), strict=True
        )
        assert all(row in shares[task] for task, row in drawn)


def test_the_versions_are_those_that_runs_may_have():
    assert max(VERSIONS) == NEWEST
    assert Order(0, 1, 8, 8, 8, (1,), 8).replay_order == NEWEST
