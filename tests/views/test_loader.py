"""Batches: pure functions of (epoch, step), the same for every world size, errors named."""

import functools
import importlib.util
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from kaizen_dist.common.errors import DataError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.replay import ReplayStore
from kaizen_dist.views import loader as loader_module
from kaizen_dist.views.backend import CPU
from kaizen_dist.views.loader import Loader
from kaizen_dist.views.torch_backend import TorchBackend

CONFIG = ViewsConfig(backend="torch", size=8)


@pytest.fixture(scope="module")
def splits(tmp_path_factory, digits):
    store = ReplayStore(tmp_path_factory.mktemp("run"))
    store.write_shards(0, digits.split(0, "train"), np.arange(0, 200, 9), 0, 1)
    store.commit(0, 23)
    return {0: store.split(0), 1: digits.split(1, "train")}


@pytest.fixture(scope="module")
def order(splits):
    return Order(0, 1, len(splits[1]), 32, 8, (len(splits[0]),), 8)


def test_a_batch_holds_the_samples_of_the_order(splits, order):
    batch = Loader(order, splits, CONFIG).batch(2, 3)
    picks = order.picks(2, 3)
    expected = [int(splits[t].index["id"][r]) for t, r in zip(picks.task, picks.row, strict=True)]
    assert batch.ids.tolist() == expected
    labels = [int(splits[t].index["label"][r]) for t, r in zip(picks.task, picks.row, strict=True)]
    assert batch.labels.tolist() == labels
    assert batch.views.shape == (2, 40, 3, 8, 8)
    assert batch.views.dtype == torch.float32
    assert batch.task_images == 32


@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_ranks_batches_joined_are_the_batch_of_one(splits, order, world):
    alone = Loader(order, splits, CONFIG).batch(0, 1)
    parts = [
        Loader(order, splits, CONFIG, lanes_of_rank(8, rank, world)).batch(0, 1)
        for rank in range(world)
    ]
    assert np.array_equal(np.concatenate([p.ids for p in parts]), alone.ids)
    # A matrix product over another batch size may round its last bit otherwise.
    assert torch.allclose(torch.cat([p.views for p in parts], dim=1), alone.views, atol=1e-5)


def test_asking_ahead_changes_nothing(splits, order):
    loader = Loader(order, splits, CONFIG.model_copy(update={"workers": 3, "prefetch": 4}))
    steps = [(epoch, step) for epoch in range(2) for step in range(order.steps_per_epoch)]
    ahead = list(loader.batches(steps))
    assert len(ahead) == len(steps)
    for (epoch, step), batch in zip(steps, ahead, strict=True):
        again = loader.batch(epoch, step)
        assert np.array_equal(batch.ids, again.ids)
        assert torch.equal(batch.views, again.views)


def test_starting_late_gives_the_same_batches(splits, order):
    loader = Loader(order, splits, CONFIG)
    whole = list(loader.batches((0, s) for s in range(order.steps_per_epoch)))
    late = list(loader.batches((0, s) for s in range(5, order.steps_per_epoch)))
    for ours, theirs in zip(late, whole[5:], strict=True):
        assert torch.equal(ours.views, theirs.views)


def test_leaving_early_leaves_no_thread_waiting(splits, order):
    for batch in Loader(order, splits, CONFIG).batches((e, 0) for e in range(10**9)):
        assert len(batch.ids) == 40
        break


def test_the_two_views_differ_and_so_do_epochs(splits, order):
    loader = Loader(order, splits, CONFIG)
    first, second = loader.batch(0, 0), loader.batch(1, 0)
    assert not torch.equal(first.views[0], first.views[1])
    common = set(first.ids[:4].tolist()) & set(second.ids.tolist())
    assert first.ids.tolist() != second.ids.tolist()
    for id in common:
        a = first.views[:, first.ids.tolist().index(id)]
        b = second.views[:, second.ids.tolist().index(id)]
        assert not torch.equal(a, b)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    stream = prepare("digits", tmp_path / "s", progress=False)
    split = stream.split(0, "train")
    entry = split.index[17]
    with split.shards[0].open("r+b") as file:
        file.seek(int(entry["offset"]))
        file.write(b"\0" * int(entry["length"]))
    order = Order(0, 0, len(split), 256, 1)
    # In some epoch the image is not among those left over.
    epoch = next(e for e in range(99) if 17 in order.picks(e, 0).row)
    with pytest.raises(DataError, match=rf"train-000000\.tar.*{entry['id']:012d}") as caught:
        Loader(order, {0: split}, CONFIG).batch(epoch, 0)
    assert "verify --decode" in str(caught.value)


class Lockless:
    """`functools.cached_property` as it is since Python 3.12."""

    def __init__(self, make) -> None:
        self.make = make

    def __set_name__(self, owner, name) -> None:
        self.name = name

    def __get__(self, instance, owner):
        if self.name not in vars(instance):
            vars(instance)[self.name] = self.make(instance)
        return vars(instance)[self.name]


@pytest.mark.parametrize("name", ["backend", "cache"])
def test_threads_open_one_of_each(splits, order, monkeypatch, name):
    monkeypatch.setattr(functools, "cached_property", Lockless)
    copy = importlib.util.module_from_spec(importlib.util.find_spec(Loader.__module__))
    monkeypatch.setitem(sys.modules, "copy_of_loader", copy)
    copy.__spec__.loader.exec_module(copy)
    opened = []

    def slowly(*arguments) -> object:
        time.sleep(0.1)
        opened.append(object())
        return opened[-1]

    monkeypatch.setattr(copy, "open_backend", slowly)
    monkeypatch.setattr(copy, "ImageCache", slowly)
    loader = copy.Loader(order, splits, CONFIG.model_copy(update={"memory_budget": 1.0}))
    together = threading.Barrier(4)

    def ask(_: int) -> object:
        together.wait()
        return getattr(loader, name)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(ask, range(4)))
    assert found == set(opened)
    assert len(opened) == 1


def test_its_threads_work_for_its_device_with_one_core_each(splits, order, monkeypatch):
    devices, cores = {}, {}

    def me() -> str:
        return threading.current_thread().name

    class Backend(TorchBackend):
        def views(self, *arguments):
            cores[me()] = torch.get_num_threads()
            return super().views(*arguments)

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.update({me(): device}))
    monkeypatch.setattr(loader_module, "open_backend", lambda config, _: Backend(config, CPU))
    gpu = torch.device("cuda", 3)
    config = CONFIG.model_copy(update={"workers": 3})
    torch.set_num_threads(2)
    try:
        batches = Loader(order, splits, config, device=gpu).batches((0, s) for s in range(5))
        assert len(list(batches)) == 5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert cores.keys() <= devices.keys()
    assert set(devices.values()) == {gpu}
    assert set(cores.values()) == {1}
