"""Whole runs on streams that lie elsewhere or fall away: the same results, or a named error."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from loopback import serving

from kaizen_dist.stream.prepare import prepare

QUICK = [
    "train.max_steps=2",
    "train.threads=1",
    "ssl.hidden=32",
    "ssl.predictor_hidden=32",
    "log.every_steps=1",
    "eval.bank=100",
    "eval.forward_transfer=false",
    "model.backbone=tiny_backbone:Tiny",
]


@pytest.fixture(scope="module")
def config(configs) -> Path:
    return configs / "digits.yaml"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """The digits in two tasks, in shards small enough that every rank reads several."""
    out = tmp_path_factory.mktemp("streams") / "digits"
    return prepare("digits", out, tasks=2, shard_size=150, progress=False)


@pytest.fixture(scope="module")
def from_path(shared_folder, config, stream) -> Path:
    run = shared_folder / "path"
    train(config, run, stream.root, "--procs", 2)
    return run


def start(config: Path, run: Path, place: object, *options: object) -> subprocess.Popen:
    arguments = ["train", config, "--stream", place, "--out", run, *QUICK, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "kaizen_dist", *map(str, arguments)],
        env=os.environ | {"NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def train(config: Path, run: Path, place: object, *options: object, code: int = 0) -> str:
    with start(config, run, place, *options) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def losses(run: Path) -> list[float]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
def test_over_http_with_a_cache_too_small_and_a_server_that_fails(
    tmp_path, config, stream, from_path
):
    run, place = tmp_path / "run", tmp_path / "cache"
    cache = (f"stream.cache_dir={place}", "stream.cache_gb=0.0004")
    with serving(stream.root) as server:
        server.faults["/task-00/train-000001.tar"] = [503, "cut"]
        server.faults["/task-01/train-000000.tar"] = ["other", "slow"]
        said = train(config, run, server.url, "--procs", 2, *cache)
        assert server.times("/task-00/train-000001.tar") >= 3
    assert f"{server.url}/task-00/train-000001.tar: the server answers 503; trying again" in said
    ours, theirs = results(run), results(from_path)
    assert ours["state_sha256"] == theirs["state_sha256"]
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["stream"] == theirs["stream"] | {"path": server.url}
    assert losses(run) == losses(from_path)


def test_begun_on_a_path_and_resumed_on_the_url(tmp_path, config, stream, from_path):
    run, options = tmp_path / "run", ("checkpoint.every_steps=1", "--procs", 2)
    with start(config, run, stream.root, *options) as process:
        deadline = time.monotonic() + 120
        while not any((run / "checkpoints").glob("t01*")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    with serving(stream.root) as server:
        said = train(config, run, server.url, *options, f"stream.cache_dir={tmp_path / 'cache'}")
    assert "resum" in said
    assert results(run)["state_sha256"] == results(from_path)["state_sha256"]


def test_on_linked_tars_as_on_copies_of_them(tmp_path, shared_folder, config, stream):
    """Of one set of tars, and on two ranks; the linked stream goes on from a checkpoint, too."""
    pattern, runs = f"webdataset:{stream.root}/*/train-*.tar", []
    for link in (False, True):
        name = "linked" if link else "copied"
        out = prepare(pattern, tmp_path / name, tasks=2, link=link, progress=False).root
        runs.append(shared_folder / name)
        if link:
            train(config, runs[-1], out, "--procs", 2, "--until", 1)
        train(config, runs[-1], out, "--procs", 2)
    copied, linked = map(results, runs)
    assert linked["state_sha256"] == copied["state_sha256"]
    assert losses(runs[1]) == losses(runs[0])
    assert (linked["accuracy"], linked["knn"]) == (copied["accuracy"], copied["knn"])


def test_a_url_without_a_stream_ends_with_3_and_its_name(tmp_path, config, stream):
    with serving(stream.root) as server:
        said = train(config, tmp_path / "run", f"{server.url}/nothing", code=3)
    assert f"{server.url}/nothing/stream.json cannot be fetched: there is no such file" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["vanish", "other bytes"])
def test_a_shard_that_changes_under_a_run_ends_it_with_3_and_its_name(tmp_path, config, change):
    stream = prepare("digits", tmp_path / "s", tasks=2, shard_size=150, progress=False)
    path = stream.split(0, "train").shards[1]

    def harm() -> None:
        if change == "vanish":
            path.unlink()
        else:
            path.write_bytes(os.urandom(path.stat().st_size))

    run = tmp_path / "run"
    long = ("train.max_steps=100000", "train.epochs=100000")
    with start(config, run, stream.root, *long) as process:
        lines: list[str] = []
        listener = threading.Thread(target=lambda: lines.extend(process.stderr))
        listener.start()
        deadline = time.monotonic() + 120
        while not (run / "events.jsonl").exists() or (run / "events.jsonl").stat().st_size < 2000:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        harm()
        process.wait(timeout=120)
        listener.join()
    said = "".join(lines)
    assert process.returncode == 3, said
    assert str(path) in said
    assert "kaizen-dist verify" in said
    assert "Traceback" not in said
