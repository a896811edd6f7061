"""`bench train`: the real loader, no run folder, and a share of waiting that is one."""

import json
import os
import subprocess
import sys

import pytest

from kaizen_dist.bench import train
from kaizen_dist.bench.train import bench_train
from kaizen_dist.config import load
from kaizen_dist.engine.process import Process

SMALL = ["train.batch_size=16", "train.threads=1", "replay.batch_size=8", "replay.fraction=0.05"]
SMALL += ["ssl.hidden=24", "ssl.dim=12", "ssl.predictor_hidden=20", "distill.hidden=20"]


@pytest.fixture
def small(configs):
    return load(configs / "digits.yaml", SMALL)


def test_steps_of_the_second_task_with_what_they_wait_for(digits, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "WARM_UP", 1)
    plain = json.loads(json.dumps(bench_train(small, digits, Process(), steps=2).to_json()))
    (row,) = plain["rows"]
    assert row["images_per_second"] > 0
    assert 0 <= row["data_wait"] < 1
    assert row["communication"] == 0
    assert len(row["losses"]) == 3
    assert all(losses["kd_features"] > 0 for losses in row["losses"])
    assert list(tmp_path.iterdir()) == []


def test_only_time_between_steps_is_waiting(digits, small, monkeypatch):
    """By a clock that ticks once a look: the step's parts are looked at often, the data once."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("kaizen_dist.bench.parts.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(train, "WARM_UP", 0)
    row = bench_train(small, digits, Process(), steps=2).rows[0]
    assert row.parts_ms["data"] == 1000
    assert row.data_wait == pytest.approx(1000 / row.step_ms)


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
    said = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert said[1] == ""
    row = json.loads(said[0])["rows"][0]
    assert 0 < row["communication"] < 1
