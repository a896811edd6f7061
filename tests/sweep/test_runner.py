"""Sweeps that really run: each run once, failures kept, stopped and killed at any moment."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kaizen_dist.common.errors import UsageError
from kaizen_dist.sweep.executors import LocalExecutor, last_error
from kaizen_dist.sweep.runner import run_sweep
from kaizen_dist.sweep.spec import read_sweep

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
TINY = f"""
base: {DIGITS}
prepare: {{source: digits, tasks: 2}}
set:
  ssl: {{hidden: 16, dim: 8, predictor_hidden: 16}}
  classifier.hidden: 16
  model.backbone: tiny_backbone:Tiny
  distill.hidden: 16
  train.max_steps: 2
  eval.bank: 50
  eval.knn: false
  eval.forward_transfer: false
"""
FOREVER = "  train.max_steps: 100000\n  train.epochs: 100000\n"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def command(path: Path, out: Path, *more: object) -> list[str]:
    asked = ["sweep", path, "--out", out, *more]
    return [sys.executable, "-m", "kaizen_dist", *map(str, asked)]


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_failure_is_kept_and_the_others_run(tmp_path):
    wild = "{name: wild, set: {optim.name: sgd, optim.lr: 1e18, optim.warmup_epochs: 0, "
    wild += "classifier.enabled: false, distill.classifier: false}}"
    sweep = read_sweep(write(tmp_path, TINY + f"list:\n - {wild}\n - {{name: tame}}\n"))
    out = tmp_path / "out"
    failed = run_sweep(sweep, None, out, LocalExecutor(1))
    assert failed["wild/seed-5"].exit_code == 1
    assert "a lower optim.lr" in failed["wild/seed-5"].error
    first, second = rows(out)
    assert (first["run"], first["status"], first["exit_code"]) == ("wild/seed-5", "failed", "1")
    assert "a lower optim.lr" in first["error"]
    assert (second["run"], second["status"], second["error"]) == ("tame/seed-5", "finished", "")
    assert 0 <= float(second["final_accuracy"]) <= 1
    events = out / "runs/tame/seed-5/events.jsonl"
    before = events.stat().st_mtime_ns
    # Again: the one that failed is tried again, the finished one is left alone.
    assert list(run_sweep(sweep, None, out, LocalExecutor(1))) == ["wild/seed-5"]
    assert events.stat().st_mtime_ns == before
    changed = read_sweep(tmp_path / "sweep.yaml", ["train.batch_size=32"])
    with pytest.raises(UsageError, match=r"tame/seed-5: [\s\S]*train\.batch_size: 64 -> 32"):
        run_sweep(changed, None, out, LocalExecutor(1))


def test_nothing_is_made_where_the_stream_is_not_named(tmp_path):
    sweep = read_sweep(write(tmp_path, f"base: {DIGITS}\nseeds: [1, 2]\n"))
    with pytest.raises(UsageError, match="--stream"):
        run_sweep(sweep, None, tmp_path / "out", LocalExecutor(1))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    sweep = read_sweep(write(tmp_path, TINY))
    with pytest.raises(UsageError, match="holds no sweep"):
        run_sweep(sweep, None, tmp_path, LocalExecutor(1))


def test_the_last_error_of_an_attempt_is_what_it_said_in_it(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: of an earlier attempt\n")
    begins = log.stat().st_size
    assert last_error(log, begins) == "no output"
    with log.open("a") as file:
        file.write("Traceback\n\nValueError: x\n")
    assert last_error(log, begins) == "ValueError: x"
    with log.open("a") as file:
        file.write("error: this one\n  a detail\n")
    assert last_error(log, begins) == "error: this one"
    assert last_error(tmp_path / "none", 0) == "no output"


@pytest.mark.slow
def test_killed_twice_and_started_again_each_run_is_there_once(tmp_path):
    path = write(tmp_path, TINY + "grid: {replay.fraction: [0, 0.01]}\nseeds: [1, 2]\n")
    out = tmp_path / "out"
    for moment in (1, 2):
        # In a session of its own, as a terminal or a queue would kill it: the sweep alone.
        with subprocess.Popen(command(path, out, "--jobs", 2), start_new_session=True) as process:
            wait_for(lambda: len(list(out.glob("runs/*/*/checkpoints/*"))) >= moment)  # noqa: B023
            process.kill()
    done = subprocess.run(command(path, out, "--jobs", 2), check=False, timeout=240)
    assert done.returncode == 0
    found = rows(out)
    expected = [f"replay.fraction={f}/seed-{s}" for f in (0, 0.01) for s in (1, 2)]
    assert [row["run"] for row in found] == expected
    assert {row["status"] for row in found} == {"finished"}
    assert len({row["state_sha256"] for row in found}) == 4
    for run in expected:
        # Every step once, in one go or resumed.
        logged = (out / "runs" / run / "events.jsonl").read_text().splitlines()
        assert len(logged) == len(set(logged)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_the_runs_with_all_saved(tmp_path, number, code):
    path = write(tmp_path, TINY.replace("  train.max_steps: 2\n", FOREVER) + "seeds: [1, 2]\n")
    out = tmp_path / "out"
    with subprocess.Popen(command(path, out, "--jobs", 2), stderr=subprocess.PIPE) as process:
        logs = (out / "logs/run").glob("*.log")
        wait_for(lambda: len(list(out.glob("runs/run/*/events.jsonl"))) == 2)
        time.sleep(2)
        process.send_signal(number)
        _, said = process.communicate(timeout=90)
    assert process.returncode == code, said.decode()
    assert b"the same command goes on" in said
    for log in logs:
        assert "preempted: stopped by SIGTERM" in log.read_text()
    for seed in (1, 2):
        assert list((out / f"runs/run/seed-{seed}/checkpoints").iterdir())
    # Nothing is left alive: the locks are free.
    for lock in (out / "locks/run").iterdir():
        subprocess.run(["flock", "--nonblock", lock, "true"], check=True, env=os.environ)
