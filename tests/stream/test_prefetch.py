"""What comes next is fetched before it is asked for, and nothing else is."""

import threading
import time

import pytest
from loopback import serving

from kaizen_dist.common.errors import DataError
from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.stream import prefetch, remote
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.prefetch import fetch_ahead
from kaizen_dist.stream.prepare import prepare

STEPS = [(epoch, step) for epoch in range(3) for step in range(5)]


@pytest.fixture
def prepared(make_folder, tmp_path) -> Stream:
    source = make_folder({"train/cat": 20, "train/dog": 20, "val/cat": 1, "val/dog": 1})
    out = tmp_path / "stream"
    return prepare(f"folder:{source}", out, tasks=1, shard_size=4, progress=False)


@pytest.fixture
def server(prepared, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "sleep", lambda _: None)
    with serving(prepared.root) as running:
        yield running


@pytest.fixture
def split(server, tmp_path):
    config = StreamConfig(cache_dir=str(tmp_path / "cache"))
    split = Stream.open(server.url, config).split(0, "train")
    server.asked.clear()
    return split


@pytest.fixture
def order(prepared):
    return Order(seed=1, task=0, size=40, batch_size=8, lanes=4)


def first_needed(order: Order, lanes, steps) -> list[str]:
    """The shards in which the steps' samples lie, four images each, as they come up."""
    rows = [row for step in steps for row in order.picks(*step, lanes).row.tolist()]
    return [f"/task-00/train-{n:06d}.tar" for n in dict.fromkeys(row // 4 for row in rows)]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stream_on_this_machine_needs_nothing(prepared, order):
    splits = {0: prepared.split(0, "train")}
    threads = threading.active_count()
    steps = fetch_ahead(order, splits, None, iter(STEPS))
    assert next(steps) == STEPS[0]
    assert threading.active_count() == threads
    assert list(steps) == STEPS[1:]


@pytest.mark.parametrize("look_ahead", [1, 4, 100])
def test_the_steps_come_out_as_they_went_in(split, order, look_ahead, monkeypatch):
    monkeypatch.setattr(prefetch, "LOOK_AHEAD", look_ahead)
    assert list(fetch_ahead(order, {0: split}, None, iter(STEPS))) == STEPS


def test_shards_are_fetched_in_the_order_in_which_the_lanes_ask(split, order, server, monkeypatch):
    monkeypatch.setattr(prefetch, "_FETCHERS", 1)
    lanes = lanes_of_rank(4, 0, 2)
    expected = first_needed(order, lanes, STEPS)
    assert len(expected) == 5  # of ten: the other rank's are its own business
    steps = fetch_ahead(order, {0: split}, lanes, iter(STEPS))
    next(steps)
    wait_for(lambda: len(server.asked) == len(expected))
    wait_for(lambda: all(split.is_ready(number) for number in range(5)))
    assert server.asked == expected
    for row in range(20):
        split.read(row)
    assert server.asked == expected
    steps.close()


def test_it_looks_no_further_ahead_than_it_should(split, order, server, monkeypatch):
    monkeypatch.setattr(prefetch, "LOOK_AHEAD", 3)
    taken = []

    def steps():
        for step in STEPS:
            taken.append(step)
            yield step

    coming = fetch_ahead(order, {0: split}, [0], steps())
    for asked in range(1, 6):
        next(coming)
        assert len(taken) == 3 + asked - 1
    coming.close()


def test_what_was_evicted_is_fetched_ahead_again(split, order, server, monkeypatch):
    monkeypatch.setattr(prefetch, "LOOK_AHEAD", 1)
    coming = fetch_ahead(order, {0: split}, None, iter(STEPS))
    next(coming)
    wait_for(lambda: split.is_ready(0) or server.asked)
    for path in split.folder.glob("*.tar"):
        path.unlink()
    before = len(server.asked)
    list(coming)
    wait_for(lambda: len(server.asked) > before)


def test_who_reads_meets_the_error_that_was_met_ahead(split, order, server, prepared):
    (prepared.root / "task-00/train-000000.tar").unlink()
    assert list(fetch_ahead(order, {0: split}, None, iter(STEPS))) == STEPS
    with pytest.raises(DataError, match=r"train-000000\.tar cannot be fetched"):
        split.read(0)


def test_its_threads_end_with_it(split, order):
    coming = fetch_ahead(order, {0: split}, None, iter(STEPS))
    next(coming)
    coming.close()
    wait_for(lambda: not any(t.name == "fetch ahead" for t in threading.enumerate()))
