"""Sweeps on a real Slurm: every run a job, taken up again by whoever asks for the same."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from killing import SMALL, Setting

from kaizen_dist.launch.attempts import AttemptLog, Began, Ended, Submitted

pytestmark = pytest.mark.timeout(600)


class Sweeping:
    """A sweep of small runs on two tasks, on two nodes each, and the command for it."""

    def __init__(
        self, slurm: Cluster, folder: Path, stream: Path, configs: Path, more: str
    ) -> None:
        self.slurm, self.out = slurm, folder / "out"
        settings = "".join(f"  {key}: {value}\n" for key, value in SMALL.items())
        base = f"base: {configs / 'digits.yaml'}\nset:\n{settings}  views.backend: torch\n"
        (folder / "sweep.yaml").write_text(base + more)
        (folder / "profile.yaml").write_text("nodes: 2\ntime: 20\nretries: 0\n")
        asked = ["sweep", folder / "sweep.yaml", "--stream", stream, "--out", self.out]
        asked += ["--slurm", folder / "profile.yaml"]
        self.command = [sys.executable, "-m", "kaizen_dist", *map(str, asked)]

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command, env=self.slurm.environment, stderr=subprocess.PIPE, start_new_session=True
        )

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.out / "sweep.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        assert len({row["run"] for row in found}) == len(found), "each run once"
        return {row["run"]: row for row in found}

    def submitted(self, run: str) -> list[str]:
        rows = AttemptLog(self.out / "runs" / run).rows()
        return [row.job for row in rows if isinstance(row, Submitted)]

    def queue(self) -> str:
        return self.slurm.run("squeue", "-h").stdout.strip()


@pytest.fixture
def sweeping(slurm, two_tasks, configs, tmp_path):
    """`sweeping(text)`: a sweep file that ends in this text."""

    def make(more: str) -> Sweeping:
        return Sweeping(slurm, tmp_path, two_tasks, configs, more)

    yield make
    slurm.run("scancel", "--full", "--signal=KILL", "--me", check=False)
    until(lambda: not slurm.run("squeue", "-h").stdout.strip(), 60)


def until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.mark.slurm
def test_killed_twice_and_started_again_each_run_is_one_job(sweeping):
    """Killed when one run is in the queue, and when both are; the jobs go on meanwhile."""
    sweep = sweeping("seeds: [1, 2]\n")
    for count in (1, 2):
        with sweep.start() as process:
            until(lambda: len(list(sweep.out.glob("runs/*/*/slurm/attempts.jsonl"))) >= count)  # noqa: B023
            process.kill()
    done = sweep.slurm.run(*sweep.command, seconds=400, check=False)
    assert done.returncode == 0, done.stderr
    rows = sweep.rows()
    assert sorted(rows) == ["run/seed-1", "run/seed-2"]
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert [len(sweep.submitted(run)) for run in rows] == [1, 1]
    assert "2 of 2 runs are finished already" in sweep.slurm.run(*sweep.command).stderr


@pytest.mark.slurm
def test_every_combination_is_trained_once(sweeping, tmp_path, configs):
    """Methods x replay fractions x seeds, at most two jobs at a time."""
    for method in ("byol", "mocov2plus"):
        Setting(method, "torch", 1).write(tmp_path / f"{method}.yaml", configs)
    sweep = sweeping(
        "list:\n - {name: byol, base: byol.yaml}\n - {name: moco, base: mocov2plus.yaml}\n"
        "grid: {replay.fraction: [0, 0.01]}\nseeds: [7, 8]\n"
    )
    settings = ["train.max_steps=1", "checkpoint.every_steps=0", "eval.knn=false"]
    sweep.slurm.run(*sweep.command, *settings, "--jobs", "2", seconds=500)
    made = {str(file.parent.relative_to(sweep.out / "runs")): json.loads(file.read_text())
            for file in sweep.out.glob("runs/*/*/results.json")}  # fmt: skip
    methods = {"byol": "byol", "moco": "mocov2plus"}
    assert sorted(made) == sorted(
        f"{name},replay.fraction={fraction}/seed-{seed}"
        for name in methods
        for fraction in ("0", "0.01")
        for seed in (7, 8)
    )
    for run, results in made.items():
        name, fraction = run.split("/")[0].split(",replay.fraction=")
        assert results["finished"]
        assert (results["method"], results["replay_fraction"]) == (methods[name], float(fraction))
        assert run.endswith(f"seed-{results['seed']}")
        assert len(sweep.submitted(run)) == 1


@pytest.mark.slurm
def test_a_failed_run_is_kept_and_those_left_in_the_queue_can_be_taken_out(sweeping):
    wild = "optim.name: sgd, optim.lr: 1.0e+18, optim.warmup_epochs: 0, "
    wild += "classifier.enabled: false, distill.classifier: false"
    endless = "train.epochs: 100000, train.max_steps: 100000"
    variants = f"list:\n - {{name: wild, set: {{{wild}}}}}\n - {{name: long, set: {{{endless}}}}}\n"
    sweep = sweeping(variants)
    with sweep.start() as process:
        until(lambda: sweep.out.exists() and (sweep.out / "sweep.csv").exists())
        until(lambda: sweep.rows()["wild/seed-5"]["status"] == "failed", 300)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"1 run left in the queue" in said
    assert "a lower optim.lr" in sweep.rows()["wild/seed-5"]["error"]
    (job,) = sweep.submitted("long/seed-5")
    assert job in sweep.queue()
    cancel = [sys.executable, "-m", "kaizen_dist", "cancel", str(sweep.out)]
    assert job in sweep.slurm.run(*cancel).stdout
    until(lambda: not sweep.queue(), 120)
    rows = AttemptLog(sweep.out / "runs/long/seed-5").rows()
    assert [type(row) for row in rows] == [Submitted, Began, Ended], "saved, and ended for good"


def test_what_stands_against_it_is_said_before_anything_is_made(sweeping):
    sweep = sweeping("seeds: [1]\n")
    profile = Path(sweep.command[-1])
    profile.write_text(profile.read_text() + "partition: mian\n")
    done = sweep.slurm.run(*sweep.command, check=False)
    assert done.returncode == 2
    assert "no mian; did you mean main?" in done.stderr
    assert not sweep.out.exists()
    done = sweep.slurm.run(*sweep.command, "--procs", "2", check=False)
    assert done.returncode == 2
    assert "ranks_per_node" in done.stderr
