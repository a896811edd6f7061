"""`bench train`: the real loader, no run folder, and a share of waiting that is one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from emulated_gpu import CUDA, EmulatedGpu

from kaizen_dist.bench import train
from kaizen_dist.bench.step_timer import StepTimer
from kaizen_dist.bench.train import LoadedSteps, bench_train, loader_of
from kaizen_dist.config import load
from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay import choose

SMALL = ["train.batch_size=16", "train.threads=1", "replay.batch_size=8", "replay.fraction=0.05"]
SMALL += [
    "ssl.hidden=24",
    "ssl.dim=12",
    "ssl.predictor_hidden=20",
    "distill.hidden=20",
    "model.backbone=tiny_backbone:Tiny",
]


@pytest.fixture
def small(configs):
    return load(configs / "digits.yaml", SMALL)


def test_steps_of_the_second_task_with_what_they_wait_for(digits, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "WARM_UP", 1)
    plain = json.loads(json.dumps(bench_train(small, digits, RankContext(), steps=2).to_json()))
    (row,) = plain["rows"]
    assert row["images_per_second"] > 0
    assert 0 <= row["data_wait"] < 1
    assert row["communication"] == 0
    assert row["images_per_second"] == pytest.approx(16_000 / row["step_ms"])
    assert row["synchronised_ms"] > 0
    assert len(row["losses"]) == 5
    assert all(losses["kd_features"] > 0 for losses in row["losses"])
    assert list(tmp_path.iterdir()) == []


def test_only_time_between_steps_is_waiting(digits, small, monkeypatch):
    """By a clock that ticks once a look: the step's parts are looked at often, the data once. In
    two steps without a pause it is looked at twice each, at the beginning and at the end."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(
        "kaizen_dist.bench.step_timer.time.perf_counter", lambda: float(next(ticks))
    )
    monkeypatch.setattr(train, "WARM_UP", 0)
    row = bench_train(small, digits, RankContext(), steps=2).rows[0]
    assert row["parts_ms"]["data"] == 1000
    assert row["step_ms"] == 1000 * 5 / 2
    assert row["data_wait"] == 2 / 5


def test_turns_with_and_without_a_pause(monkeypatch):
    """A GPU takes 5 s for what its host queues in 1, and its loader makes a batch in 3. While it
    has work that costs nothing; where every step is waited for it does."""
    gpu = EmulatedGpu(monkeypatch)

    class Engine:
        def step(self, batch, number):
            gpu.host(1)
            gpu.queue(5)

    def batches():
        while True:
            gpu.host(3)
            yield None

    monkeypatch.setattr(RankContext, "barrier", lambda _: gpu.host(1000))
    monkeypatch.setattr("kaizen_dist.bench.steps.report", gpu.report)
    taken = LoadedSteps(Engine(), StepTimer(CUDA), batches(), RankContext(device=CUDA))
    parts = taken.synchronised(2)
    assert [(p["data"].seconds, p["rest"].seconds) for p in parts] == [(3, 6), (3, 6)]
    taken.free_running(4)
    # The first batch alone is waited for: 3, 1 until the work is queued, and 5 for each.
    (turn,) = taken.turns
    assert (turn.seconds * 4, taken.waited, taken.seconds) == (24, pytest.approx(3), 24)
    assert len(taken.losses) == 6


def test_a_cached_stream_is_as_good_as_one_on_a_disk(digits, small, tmp_path):
    """What is replayed is read where the stream is, cached or remote, as its own images are."""
    cached = Stream.open(digits.root, StreamConfig(cache_dir=str(tmp_path / "cache")))
    near, far = (loader_of(small, stream, 1, RankContext()) for stream in (digits, cached))
    assert rows_of(far) == rows_of(near)
    batch, other = (next(loader.batches([(0, 0)])) for loader in (near, far))
    assert torch.equal(batch.views, other.views)
    assert len(batch.ids) > batch.task_images, "some are replayed"


def test_every_setting_of_replay_is_kept(digits, small):
    """As a run keeps them: the first ones, or more of every class."""
    past = digits.split(0, "train")
    kept = set()
    for replay in ({"select": "first"}, {"fraction": 0.3}, {"fraction": 0.5}):
        chosen = small.replay.model_copy(update=replay)
        config = small.model_copy(update={"replay": chosen})
        rows = choose(past, chosen.fraction, chosen.select, config.train.seed, 0)
        loaded = rows_of(loader_of(config, digits, 1, RankContext()))[0]
        assert loaded == past.ids[rows].tolist()
        kept.add(tuple(loaded))
    assert len(kept) == 3


def rows_of(loader):
    return {task: split.ids.tolist() for task, split in loader.splits.items()}


@pytest.mark.slow
def test_ranks_that_are_processes(digits, configs, free_port):
    """Under torchrun's environment: two ranks share a batch, and their collectives are seen."""
    arguments = ["bench", "train", str(configs / "digits.yaml"), "--stream", str(digits.root)]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "kaizen_dist", *arguments, *SMALL, "--steps", "2", "--json"],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [context.communicate(timeout=240)[0] for context in ranks]
    assert [context.returncode for context in ranks] == [0, 0]
    assert said[1] == ""
    row = json.loads(said[0])["rows"][0]
    assert 0 < row["communication"] < 1
