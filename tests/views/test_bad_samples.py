"""Samples that do not decode: found, named, counted, replaced by a pure function of the step."""

import re
from itertools import count

import numpy as np
import pytest
import torch

from kaizen_dist.common import rng as counters
from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.views.bad_samples import replace_bad
from kaizen_dist.views.loader import centre_views

ORDERS = [
    Order(3, 2, 400, 32, 8, (17, 40), 16),
    Order(3, 2, 400, 32, 8, (17, 40), 16, replay_order=1),
    Order(0, 1, 101, 12, 4, (2,), 4),  # a batch has two of each kept image
    Order(0, 1, 101, 12, 4, (2,), 4, replay_order=1),  # each is lent to two lanes
    Order(1, 0, 16, 16, 2),  # a step takes all there is
]


def lane_of_task(order: Order, epoch: int, lane: int) -> list[int]:
    """The rows of a lane in the order of an epoch, from the definition."""
    start, end = (order.size * n // order.lanes for n in (lane, lane + 1))
    key = counters.key("order", order.seed, order.task, epoch)
    return (start + counters.permute(key, np.arange(end - start), end - start, lane)).tolist()


def replayed_from(order: Order, epoch: int, step: int, lane: int):
    """(task, row, draw) of a lane's in a step, and of those from its place in the next one on: of
    the lane alone in the first version."""
    begin = epoch * order.steps_per_epoch + step
    for number in count(begin):
        alone = number == begin or order.replay_order == 1
        served = [lane] if alone else range(lane if number == begin + 1 else 0, order.lanes)
        picks = order.picks(*divmod(number, order.steps_per_epoch), served)
        at = picks.replay
        yield from zip(
            picks.task[at].tolist(), picks.row[at].tolist(), picks.draw[at].tolist(), strict=True
        )


def expected(order: Order, epoch: int, step: int, lane: int, bad: set) -> list:
    """(task, row, draw) that a lane serves in a step, found by looking through the lane."""
    take = order.batch_size // order.lanes
    rows = lane_of_task(order, epoch, lane)
    turned = [rows[(step * take + n) % len(rows)] for n in range(10 * len(rows))]
    every = [(order.task, row, epoch) for row in turned]
    served = put_right(every[:take], iter(every[take:]), bad)
    if order.replay_sizes:
        replayed = replayed_from(order, epoch, step, lane)
        own = [next(replayed) for _ in range(order.replay_batch_size // order.lanes)]
        served += put_right(own, replayed, bad)
    return served


def put_right(own: list, coming, bad: set) -> list:
    good = (sample for sample in coming if sample[:2] not in bad)
    return [next(good) if sample[:2] in bad else sample for sample in own]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_in_place_of_the_bad_come_the_next_of_their_lane(order, share):
    rng = np.random.default_rng(int(100 * share))
    for epoch, step in ((0, 0), (3, order.steps_per_epoch - 1)):
        bad = {(order.task, int(r)) for r in np.flatnonzero(rng.random(order.size) < share)}
        for task, size in enumerate(order.replay_sizes):
            bad |= {(task, int(r)) for r in np.flatnonzero(rng.random(size) < share)}
        for lane in range(order.lanes):
            # A lane with nothing good in it has a test of its own.
            bad.discard((order.task, lane_of_task(order, epoch, lane)[0]))
            bad.discard(next(replayed_from(order, 0, 0, lane))[:2] if order.replay_sizes else None)
        picks, replaced = replace_bad(order, epoch, step, None, bad)
        ours = zip(picks.task.tolist(), picks.row.tolist(), picks.draw.tolist(), strict=True)
        theirs = [expected(order, epoch, step, lane, bad) for lane in range(order.lanes)]
        assert list(ours) == [sample for of_lane in theirs for sample in of_lane]
        plain = order.picks(epoch, step)
        asked = list(zip(plain.task.tolist(), plain.row.tolist(), strict=True))
        assert replaced == [row for row in asked if row in bad]
        assert np.array_equal(picks.replay, plain.replay)


def test_a_lane_without_a_good_sample_is_an_error():
    order = ORDERS[0]
    lane = {(order.task, row) for row in lane_of_task(order, 0, 3)}
    with pytest.raises(DataError, match="task 2: no image of lane 3 decodes"):
        replace_bad(order, 0, 0, None, lane)
    kept = {(task, row) for task, size in enumerate(order.replay_sizes) for row in range(size)}
    with pytest.raises(DataError, match="task 2: no replayed image of lane 0 decodes"):
        replace_bad(order, 0, 0, None, kept)


@pytest.fixture
def damaged(task):
    """Bad samples in two lanes, two of them in one step; and one in the replay store."""
    first = task.order.picks(0, 0)
    rows = first.row[~first.replay][[1, 2, 9]].tolist()
    for row in rows:
        task.damage(1, row)
    replayed = int(first.row[first.replay][0])
    task.damage(0, replayed, b"GIF89a")
    task.bad = {(1, row) for row in rows} | {(0, replayed)}
    return task


def test_a_batch_is_made_whole_and_says_what_was_replaced(damaged, backend):
    loader = damaged.loader(backend=backend, max_bad=0.05)
    batch = loader.batch(0, 0)
    picks, replaced = replace_bad(damaged.order, 0, 0, None, damaged.bad)
    entries = [
        damaged.splits[t].index[r]
        for t, r in zip(picks.task.tolist(), picks.row.tolist(), strict=True)
    ]
    assert batch.ids.tolist() == [e["id"] for e in entries]
    assert batch.labels.tolist() == [e["label"] for e in entries]
    assert batch.task_images == 32
    assert [f.where for f in batch.replaced] == [damaged.splits[t].where(r) for t, r in replaced]
    assert len(replaced) == 4
    for sample in batch.replaced:
        assert re.search(NAMED, sample.where)
        assert sample.reason
    assert len(set(batch.ids[:4].tolist())) == 4, "nothing comes twice"


def test_a_replacement_has_the_views_of_its_own_id(damaged, backend):
    batch = damaged.loader(backend=backend, max_bad=0.05).batch(0, 0)
    later = damaged.loader(backend=backend, max_bad=0.05).batch(0, 1)
    # Slots 1 and 2 of lane 0 are bad: the first two of its next step come in their places.
    assert batch.ids[1:3].tolist() == later.ids[:2].tolist()
    assert torch.allclose(batch.views[:, 1:3], later.views[:, :2], atol=1e-5)


NAMED = r"(train-000000\.tar: sample \d{12} \(digit \d+\)|replay-000000\.tar: sample \d{12})$"
"""Replayed images are known by their id alone."""


@pytest.mark.parametrize("world", [2, 4, 8])
def test_replacements_do_not_depend_on_the_world_size(damaged, world):
    steps = [(epoch, step) for epoch in range(2) for step in range(damaged.order.steps_per_epoch)]
    settings = {"backend": "torch", "max_bad": 0.05}
    alone = damaged.loader(**settings)
    ranks = [damaged.loader(lanes_of_rank(8, rank, world), **settings) for rank in range(world)]
    for where in steps:
        whole, parts = alone.batch(*where), [rank.batch(*where) for rank in ranks]
        assert np.array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
        assert torch.allclose(torch.cat([p.views for p in parts], 1), whole.views, atol=1e-5)
        assert sum((p.replaced for p in parts), ()) == whole.replaced


def test_what_is_known_already_changes_nothing(damaged, backend):
    settings = {"backend": backend, "max_bad": 0.05, "workers": 3, "prefetch": 4}
    steps = [(epoch, step) for epoch in range(2) for step in range(damaged.order.steps_per_epoch)]
    loader = damaged.loader(**settings)
    ahead = list(loader.batches(steps))
    assert {f.where for f in loader.bad_samples.found()} == {
        damaged.splits[t].where(r) for t, r in damaged.bad
    }
    for where, batch in zip(steps[::3], ahead[::3], strict=True):
        fresh = damaged.loader(**settings).batch(*where)
        assert np.array_equal(fresh.ids, batch.ids)
        assert torch.equal(fresh.views, batch.views)
        assert fresh.replaced == batch.replaced


def test_an_image_of_another_size_than_indexed_is_replaced(task, backend):
    """Whether it is depends on the sample alone, not on the windows that a step draws."""
    entries = task.splits[1].index
    task.splits[1].index = np.array(entries)
    row = int(task.order.picks(0, 0).row[0])
    task.splits[1].index[row]["height"] -= 1
    for epoch in range(3):
        step = next(
            s
            for s in range(task.order.steps_per_epoch)
            if row in task.order.picks(epoch, s).row[~task.order.picks(epoch, s).replay]
        )
        (sample,) = task.loader(backend=backend, max_bad=0.01).batch(epoch, step).replaced
        assert sample.reason == "it has 8 x 8 pixels, the index says 7 x 8"


def test_more_than_max_bad_is_an_error_that_names_them(damaged, backend):
    images = sum(len(split) for split in damaged.splits.values())
    just = damaged.loader(backend=backend, max_bad=4 / images)
    assert len(just.batch(0, 0).replaced) == 4
    with pytest.raises(DataError, match=rf"4 of {images} training images") as caught:
        damaged.loader(backend=backend, max_bad=3.9 / images).batch(0, 0)
    assert caught.value.exit_code == 3
    for task, row in damaged.bad:
        assert damaged.splits[task].where(row) in str(caught.value)
    assert "views.max_bad" in str(caught.value)


def test_a_shard_that_cannot_be_read_is_no_bad_sample(task, backend):
    task.splits[1].shards[0].unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        task.loader(backend=backend, max_bad=1.0).batch(0, 0)


def test_evaluation_replaces_training_images_and_needs_all_others(damaged, backend, digits):
    maker, split = damaged.loader(backend=backend).backend, damaged.splits[1]
    row = min(row for task, row in damaged.bad if task == 1)
    following = next(r for r in count(row + 1) if (1, r) not in damaged.bad)
    told = []
    views, places = centre_views(maker, [(split, row), (split, 3)], told.append)
    assert [r for _, r in places] == [following, 3]
    assert [sample.where for sample in told] == [split.where(row)]
    alone, _ = centre_views(maker, [(split, following)], told.append)
    assert torch.allclose(views[:1], alone, atol=1e-5)
    split.part = "val"
    with pytest.raises(DataError, match=split.where(row)):
        centre_views(maker, [(split, row)], told.append)
