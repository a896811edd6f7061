"""The whole run: from a stream to results, resumed, in several processes, and with bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kaizen_dist.stream.prepare import prepare

QUICK = [
    "train.max_steps=3",
    "train.threads=1",
    "ssl.hidden=32",
    "ssl.predictor_hidden=32",
    "log.every_steps=1",
    "eval.bank=100",
    "model.backbone=tiny_backbone:Tiny",
]

LONG = ["train.max_steps=100000", "train.epochs=100000", *QUICK[1:]]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kaizen_dist", *map(str, arguments)]


def kaizen(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def config(configs) -> Path:
    return configs / "digits.yaml"


@pytest.fixture(scope="module")
def undisturbed(shared_folder, config, digits) -> Path:
    """A finished run on two ranks."""
    run = shared_folder / "undisturbed"
    done = kaizen("train", config, *QUICK, "--stream", digits.root, "--out", run, "--procs", 2)
    for metric in ("FA", "CA", "F", "FT"):
        assert metric in done.stdout
    return run


def test_a_run_leaves_what_is_promised(undisturbed, digits):
    made = {p.name for p in undisturbed.iterdir()}
    expected = {"config.yaml", "events.jsonl", "results.json", "tensorboard", "checkpoints"}
    assert made >= expected | {"replay"}
    found = results(undisturbed)
    assert found["finished"]
    assert found["world_size"] == 2
    assert found["replay_order"] == 2
    assert len(found["state_sha256"]) == 64
    for name in ("accuracy", "knn"):
        for t, row in enumerate(found[name]):
            for i, value in enumerate(row):
                # Class-incremental: a task to come shares no class with those seen.
                assert (value is None) == (i > t), (name, t, i)
                assert value is None or 0 <= value <= 1
    for name in ("final_accuracy", "continual_accuracy", "forgetting", "forward_transfer"):
        assert isinstance(found[name], float), name
    # Three images of every class at 1 % of about 144, one of each kept at least.
    kept = [len(list((undisturbed / "replay").glob(f"task-{t:02d}/*.tar"))) for t in range(5)]
    assert kept == [1] * 5


def test_events_have_a_row_a_step_and_terms_that_add_up(undisturbed):
    rows = events(undisturbed)
    assert [(r["task"], r["step"]) for r in rows] == [(t, s) for t in range(5) for s in range(3)]
    for row in rows:
        terms = [row[k] for k in ("ssl", "classifier", "kd_features", "kd_classifier")]
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert (row["kd_features"] > 0) == (row["task"] > 0)
        assert (row["kd_classifier"] > 0) == (row["task"] > 0)
        assert row["images_per_second"] > 0
        assert 0 <= row["data_wait"] <= 1
        assert row["lr"] > 0


def test_a_finished_run_is_left_alone(undisturbed, config, digits):
    before = (undisturbed / "results.json").read_bytes()
    done = kaizen("train", config, *QUICK, "--stream", digits.root, "--out", undisturbed)
    assert "finished" in done.stderr
    assert json.loads(before)["state_sha256"] == results(undisturbed)["state_sha256"]
    assert len(events(undisturbed)) == 15


def test_another_configuration_is_refused_with_what_differs(undisturbed, config, digits):
    arguments = ("--stream", digits.root, "--out", undisturbed)
    done = kaizen("train", config, *QUICK, "optim.lr=0.5", *arguments, code=2)
    assert "optim.lr: 0.001 -> 0.5" in done.stderr
    assert "another folder" in done.stderr
    # What does not change the meaning may differ.
    kaizen("train", config, *QUICK, "log.every_steps=7", *arguments)


def test_another_stream_is_refused(undisturbed, config, tmp_path):
    other = prepare("digits", tmp_path / "other", seed=6, progress=False)
    done = kaizen("train", config, *QUICK, "--stream", other.root, "--out", undisturbed, code=2)
    assert "another stream" in done.stderr


@pytest.mark.parametrize("method", ["byol", "mocov2plus"])
def test_killed_and_started_again_it_ends_the_same(tmp_path, config, digits, method):
    """SIGKILL in the middle of a task, then the same command: bit for bit the same end."""
    settings = [*QUICK, "checkpoint.every_steps=2", f"method={method}", "eval.knn=false"]
    settings += ["ssl.predictor_hidden=32"] if method == "byol" else ["ssl.queue=100"]
    if method != "byol":
        settings.remove("ssl.predictor_hidden=32")
        config = tmp_path / "moco.yaml"
        text = (Path(__file__).parents[1] / "configs" / "digits.yaml").read_text()
        lines = [line for line in text.splitlines() if not line.startswith(("base:", "ssl:"))]
        config.write_text("\n".join(lines))
        settings.append("ssl.dim=16")
    settings.append("eval.forward_transfer=false")
    runs = {name: tmp_path / name for name in ("whole", "killed")}
    kaizen("train", config, *settings, "--stream", digits.root, "--out", runs["whole"])
    arguments = ("train", config, *settings, "--stream", digits.root, "--out", runs["killed"])
    with subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (runs["killed"] / "checkpoints" / "t02-s000002").exists())
        process.kill()
    kaizen(*arguments)
    ours, theirs = (results(runs[name]) for name in ("killed", "whole"))
    assert ours["state_sha256"] == theirs["state_sha256"]
    assert ours["accuracy"] == theirs["accuracy"]
    losses = [
        [(r["task"], r["step"], r["loss"], r["kd_features"]) for r in events(runs[name])]
        for name in ("killed", "whole")
    ]
    assert losses[0] == losses[1]


def test_switches_give_the_papers_other_rows(tmp_path, config, digits):
    """No distill: the two terms on the current task, no replay."""
    run = tmp_path / "run"
    off = ["distill.features=false", "distill.classifier=false", "replay.fraction=0"]
    kaizen("train", config, *QUICK, *off, "--stream", digits.root, "--out", run)
    assert not (run / "replay").exists()
    for row in events(run):
        assert row["kd_features"] == row["kd_classifier"] == 0
        assert row["ssl"] > 0
        assert row["classifier"] > 0


def test_an_unlabelled_stream_is_learnt_without_a_classifier(tmp_path, config):
    stream = prepare("digits", tmp_path / "s", labels=0.0, progress=False)
    arguments = ("--stream", stream.root, "--out", tmp_path / "run")
    done = kaizen("train", config, *QUICK, *arguments, code=2)
    assert "classifier.enabled" in done.stderr
    assert not (tmp_path / "run").exists()
    off = ["classifier.enabled=false", "distill.classifier=false"]
    kaizen("train", config, *QUICK, *off, *arguments)
    found = results(tmp_path / "run")
    assert found["final_accuracy"] is None
    assert found["accuracy"][-1] == [None] * 5


def test_a_world_that_does_not_fit_is_refused_before_anything_is_made(tmp_path, config, digits):
    run = tmp_path / "run"
    done = kaizen(
        "train", config, *QUICK, "--stream", digits.root, "--out", run, "--procs", 3, code=2
    )
    assert "world sizes that fit: 1, 2, 4, 8, 16" in done.stderr
    assert not run.exists()


def test_a_backbone_that_there_is_not_is_refused_before_anything_is_made(tmp_path, config, digits):
    wrong = ("--stream", digits.root, "--out", tmp_path / "run", "model.backbone=resnet81")
    done = kaizen("train", config, *QUICK, *wrong, code=2)
    assert "did you mean resnet18" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_stream_exits_3(tmp_path, config):
    done = kaizen("train", config, "--stream", tmp_path / "none", "--out", tmp_path / "run", code=3)
    assert "there is no stream" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_truncated_shard_exits_3_and_is_named(tmp_path, config):
    stream = prepare("digits", tmp_path / "s", progress=False)
    shard = stream.root / "task-03" / "train-000000.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 2048)
    for arguments in (
        ("train", config, "--stream", stream.root, "--out", tmp_path / "run"),
        ("verify", stream.root),
        ("inspect", stream.root),
    ):
        assert "task-03/train-000000.tar" in kaizen(*arguments, code=3).stderr


@pytest.mark.parametrize("name", ["thesis.tex", ".thesis.tmp"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path, config, digits, name):
    (tmp_path / name).write_text("precious")
    done = kaizen("train", config, *QUICK, "--stream", digits.root, "--out", tmp_path, code=2)
    assert "holds no run" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_killed_writer_left_is_no_obstacle_and_goes(tmp_path, config, digits):
    """Killed at its very first file, later in the middle of a model."""
    run = tmp_path / "run"
    run.mkdir()
    half = run / ".config.yaml.4711.tmp", run / "models" / ".task-00.safetensors.4711.tmp"
    quick = (*QUICK, "eval.knn=false", "eval.forward_transfer=false")
    for path in half:
        path.write_bytes(b"hal")
        arguments = ("--stream", digits.root, "--out", run, "--until", "1")
        kaizen("train", config, *quick, *arguments)
        assert not path.exists()
    assert [path.name for path in (run / "models").iterdir()] == ["task-00.safetensors"]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, config, digits):
    wild = ["optim.name=sgd", "optim.lr=1e18", "optim.warmup_epochs=0", "eval.knn=false"]
    wild += ["eval.forward_transfer=false", "classifier.enabled=false", "distill.classifier=false"]
    arguments = ("--stream", digits.root, "--out", tmp_path / "run")
    done = kaizen("train", config, *QUICK, *wild, "method=byol", *arguments, code=1)
    assert "a lower optim.lr" in done.stderr


def test_torchrun_gives_the_same_run_bit_for_bit(undisturbed, tmp_path, config, digits):
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    arguments = ["train", config, *QUICK, "--stream", digits.root, "--out", run]
    done = subprocess.run(
        [*torchrun, "2", "-m", "kaizen_dist", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert results(run)["state_sha256"] == results(undisturbed)["state_sha256"]
    assert [r["loss"] for r in events(run)] == [r["loss"] for r in events(undisturbed)]


def test_an_interrupt_ends_with_130_and_how_to_go_on(tmp_path, config, digits):
    arguments = ("train", config, *LONG, "eval.forward_transfer=false", "--procs", 2)
    arguments += ("--stream", digits.root, "--out", tmp_path / "run")
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (tmp_path / "run" / "events.jsonl").exists())
        wait_for(lambda: len(events(tmp_path / "run")) > 2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said


# ---- ranks that die ---------------------------------------------------------------------


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> dict[int, int]:
    """The ranks started by a process, by their pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        rank = [e[5:] for e in environment if e.startswith(b"RANK=")]
        if parent == pid and rank:
            found[int(rank[0])] = int(folder.name)
    return found


@pytest.mark.cold  # its ranks are told apart by what /proc says of them
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_run_and_is_named(tmp_path, config, digits, victim):
    arguments = ("train", config, *LONG, "eval.forward_transfer=false", "--procs", 2)
    arguments += ("--stream", digits.root, "--out", tmp_path / "run")
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (tmp_path / "run" / "events.jsonl").exists())
        wait_for(lambda: len(events(tmp_path / "run")) > 2)
        os.kill(children(process.pid)[victim], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"rank {victim} was ended by SIGKILL" in said


@pytest.mark.parametrize(
    ("victim", "how"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGKILL)]
)
def test_without_a_launcher_the_others_find_out_by_themselves(
    tmp_path, config, digits, free_port, victim, how
):
    run = tmp_path / "run"
    settings = [*LONG, "eval.forward_transfer=false", "parallel.silence_seconds=5"]
    arguments = command("train", config, *settings, "--stream", digits.root, "--out", run)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            arguments,
            env=os.environ | address | world | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    try:
        wait_for(lambda: (run / "events.jsonl").exists() and len(events(run)) > 2)
        started[victim].send_signal(how)
        _, said = started[1 - victim].communicate(timeout=60)
        assert started[1 - victim].returncode == 1
        assert f"rank {victim}" in said
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_rank_that_fails_says_why_and_the_others_repeat_it(tmp_path, config):
    stream = prepare("digits", tmp_path / "s", progress=False)
    split = stream.split(0, "train")
    # The last image of the task: only the last lane, and so rank 1, ever reads it.
    entry = split.index[len(split) - 1]
    with split.shards[0].open("r+b") as file:
        file.seek(int(entry["offset"]))
        file.write(bytes(int(entry["length"])))
    arguments = ("--stream", stream.root, "--out", tmp_path / "run", "--procs", 2)
    off = ["eval.forward_transfer=false", "eval.knn=false"]
    done = kaizen("train", config, "train.epochs=2", *QUICK[1:], *off, *arguments, code=3)
    assert "rank 1: " in done.stderr
    named = rf"sample {entry['id']:012d} \(digit \d+\) does not decode"
    assert re.search(named, done.stderr)
    # Told by rank 1's end, or at a logged step, where all ranks hear of it at once.
    told = "rank 0 ends: rank 1 failed", "rank 0: 1 of 291 training images do not decode"
    assert any(words in done.stderr for words in told)
