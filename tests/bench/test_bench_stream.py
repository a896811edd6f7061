"""The stream's benchmark: what it makes up is a stream, its rows are named and whole."""

import io
import json
import mmap

import numpy as np
import pytest
from rich.console import Console

from kaizen_dist.bench import stream as bench
from kaizen_dist.common.errors import UsageError
from kaizen_dist.stream.manifest import Stream


def test_all_is_measured_and_nothing_is_left_behind(tmp_path):
    result = bench.bench_stream(
        samples=5000, ordered=10_000, batch=64, world=2, repeats=3, folder=tmp_path
    )
    plain = json.loads(json.dumps(result.to_json()))
    names = ["open", "seek", "order", "order with replay"]
    assert [row["name"] for row in plain["rows"]] == names
    for row in plain["rows"]:
        assert 0 < row["milliseconds"] <= row["worst_milliseconds"]
        assert row["images_per_second"] > 0
        assert row["cpu_ms_per_image"] > 0
        assert row["memory_mb"] >= 0
    assert (plain["settings"]["samples"], plain["settings"]["world"]) == (5000, 2)
    assert list(tmp_path.iterdir()) == []
    console = Console(width=100, file=io.StringIO())
    console.print(result.sheets[0].table())
    assert all(name in console.file.getvalue() for name in names)


def test_the_stream_that_is_made_up_opens_and_is_full_of_holes(tmp_path):
    bench.make_stream(tmp_path, 4001)
    split = Stream.open(tmp_path).split(0, "train")
    assert (len(split), len(split.shards)) == (4001, 3)
    assert sorted(split.ids) == list(range(4001))
    assert set(split.labels) == set(range(1000))
    assert split.read(4000) == bytes(110_000)
    assert sum(path.stat().st_blocks * 512 for path in split.shards) < 10**6
    assert len(Stream.open(tmp_path).split(0, "val")) == 0


def test_memory_counts_from_before(monkeypatch):
    sizes = {False: 500_000_000, True: 507_000_000}
    monkeypatch.setattr(bench, "resident_bytes", lambda *, peak=False: sizes[peak])
    assert bench._grown(bench.resident_bytes()) == pytest.approx(7)
    monkeypatch.setattr(bench, "resident_bytes", lambda *, peak=False: None)
    assert bench._grown(None) is None


def test_memory_of_this_process():
    before = bench.resident_bytes()
    # Straight from the system: what was freed earlier may be handed out again.
    held = np.frombuffer(mmap.mmap(-1, 50_000_000), np.uint8)
    held[:] = 1
    assert bench.resident_bytes() - before > 40_000_000
    assert bench.resident_bytes(peak=True) >= bench.resident_bytes()
    del held


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        bench.bench_stream(samples=0)
    with pytest.raises(UsageError, match="3 ranks"):
        bench.bench_stream(world=3, folder=tmp_path)
    with pytest.raises(UsageError, match="too few"):
        bench.bench_stream(samples=10, folder=tmp_path)
