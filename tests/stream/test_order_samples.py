"""Promise 1 beyond the row numbers: ids and view parameters, at every world, from any start."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.index import INDEX
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import Loader
from kaizen_dist.views.recipe import ViewParameters

CONFIG = ViewsConfig(size=64, blur=(1.0, 0.1))


def split_of(task, size):
    """A split of which nothing but the index exists; its ids are not its row numbers."""
    index = np.zeros(size, INDEX)
    index["id"] = 10_000 * task + np.random.default_rng(task).permutation(size)
    index["label"] = index["id"] % 7
    index["height"], index["width"] = 40 + index["id"] % 90, 30 + index["id"] % 110
    return Split(Path(f"task-{task:02d}"), "train", index)


@st.composite
def orders(draw):
    lanes = draw(st.sampled_from([1, 2, 4, 8, 16]))
    batch = lanes * draw(st.integers(1, 3))
    past = tuple(draw(st.lists(st.integers(1, 40), max_size=3)))
    return Order(
        seed=draw(st.integers(0, 2**63 - 1)),
        task=len(past),
        size=draw(st.integers(batch, 300)),
        batch_size=batch,
        lanes=lanes,
        replay_sizes=past,
        replay_batch_size=lanes * draw(st.integers(1, 2)),
        replay_order=draw(st.sampled_from([1, 2])),
    )


def columns(samples):
    """All that a step says of its samples, each of shape [n, ...]."""
    parameters = [vars(view)[name] for view in samples.parameters for name in PARAMETERS]
    return [samples.ids, samples.labels, samples.replay, *parameters]


PARAMETERS = list(ViewParameters.__dataclass_fields__)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a, b)


@settings(max_examples=40, deadline=None)
@given(orders(), st.integers(0, 10**6), st.data())
def test_every_world_makes_the_same_samples_from_any_step(order, epoch, data):
    sizes = [*order.replay_sizes, order.size]
    splits = {task: split_of(task, size) for task, size in enumerate(sizes)}
    alone = Loader(order, splits, CONFIG)
    start = data.draw(st.integers(0, order.steps_per_epoch - 1))
    for step in range(start, min(start + 2, order.steps_per_epoch)):
        whole = columns(alone.samples(epoch, step))
        assert len(whole[0]) == order.batch_size + order.replay_batch_size * bool(
            order.replay_sizes
        )
        for world in (2, 4, 8):
            if order.lanes % world == 0:
                # Loaders that have served nothing yet, as after a restart at another size.
                ranks = [
                    Loader(order, splits, CONFIG, lanes_of_rank(order.lanes, rank, world))
                    for rank in range(world)
                ]
                parts = [columns(rank.samples(epoch, step)) for rank in ranks]
                assert_same([np.concatenate(p) for p in zip(*parts, strict=True)], whole)


@settings(max_examples=20, deadline=None)
@given(orders(), st.data())
def test_a_sample_has_other_views_in_every_round(order, data):
    """Neither two epochs, nor two rounds of replay, nor the two views of one are alike."""
    sizes = [*order.replay_sizes, order.size]
    loader = Loader(order, {t: split_of(t, n) for t, n in enumerate(sizes)}, CONFIG)
    seen = {}
    for epoch in range(3):
        samples = loader.samples(epoch, data.draw(st.integers(0, order.steps_per_epoch - 1)))
        for view, parameters in enumerate(samples.parameters):
            for place, id in enumerate(samples.ids.tolist()):
                drawn = [vars(parameters)[name][place].tobytes() for name in PARAMETERS]
                seen.setdefault(id, []).append((view, *drawn))
    for views in seen.values():
        assert len(set(views)) == len(views)
