"""The plain batch scripts, as they lie in slurm/, on a real Slurm."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import SMALL, Setting

from kaizen_dist.stream.prepare import prepare

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
HERE = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory) -> Path:
    return prepare("digits", tmp_path_factory.mktemp("s") / "s", tasks=2, progress=False).root


@pytest.fixture(scope="module")
def local(tmp_path_factory, two_tasks, configs) -> Path:
    """A finished run on four ranks of this machine."""
    run = tmp_path_factory.mktemp("runs") / "local"
    command = [sys.executable, "-m", "kaizen_dist", "train", str(configs / "digits.yaml")]
    command += [*SETTINGS, "--stream", str(two_tasks), "--out", str(run), "--procs", "4"]
    subprocess.run(command, timeout=240, check=True, stdout=subprocess.DEVNULL)
    return run


def outcome(run: Path) -> tuple[str, list[tuple[int, int, float]]]:
    digest = json.loads((run / "results.json").read_text())["state_sha256"]
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return digest, [(row["task"], row["step"], row["loss"]) for row in rows]


def finish(slurm, job: str, log: Path, restarts: int = 0) -> dict[str, str]:
    ended = slurm.wait(job, ENDED, seconds=240, restarts=restarts)
    assert ended["JobState"] == "COMPLETED", log.read_text()
    return ended


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_slurm_would_take_it_as_it_stands(slurm, script):
    """And it says how it is used when it is used otherwise."""
    assert "to start at" in slurm.run("sbatch", "--test-only", script).stderr
    alone = slurm.run("bash", script, check=False)
    assert alone.returncode == 2
    assert alone.stderr.startswith(f"usage: {script.name} ")


def test_prepare_cuts_a_stream(slurm, tmp_path, two_tasks):
    log, stream = tmp_path / "log", tmp_path / "stream"
    job = slurm.submit(
        f"--output={log}", ROOT / "slurm/prepare.sbatch", "digits", stream, "--tasks=2", **HERE
    )
    finish(slurm, job, log)
    made = json.loads((stream / "stream.json").read_text())
    assert made == json.loads((two_tasks / "stream.json").read_text())


@pytest.mark.slurm
def test_bench_measures(slurm, tmp_path):
    log = tmp_path / "log"
    arguments = ["stream", "--samples=1000", "--ordered=1000", "--batch=8", "--json"]
    job = slurm.submit(f"--output={log}", ROOT / "slurm/bench.sbatch", *arguments, **HERE)
    finish(slurm, job, log)
    assert json.loads(log.read_text())["rows"]


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_training_on_two_nodes_is_the_local_training(
    slurm, tmp_path, two_tasks, configs, local, launcher
):
    log, run = tmp_path / "log", tmp_path / "run"
    place = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", f"--output={log}"]
    what = [configs / "digits.yaml", two_tasks, run, *SETTINGS]
    script = ROOT / "slurm/train.sbatch"
    job = slurm.submit(*place, script, *what, LAUNCHER=launcher, **HERE)
    ended = finish(slurm, job, log)
    assert ended["NodeList"] == "node[1-2]"
    assert outcome(run) == outcome(local)


@pytest.mark.slurm
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_warned_training_queues_itself_again_and_ends_the_same(
    slurm, tmp_path, two_tasks, configs, launcher
):
    """The warning of a time limit or of a preemption, sent by hand; no checkpoint but its own."""
    log, whole, run = tmp_path / "log", tmp_path / "whole", tmp_path / "run"
    place = ["--nodes=2", "--ntasks-per-node=1", f"--output={log}", ROOT / "slurm/train.sbatch"]
    settings = [*SETTINGS, "train.max_steps=30", "checkpoint.every_steps=0"]
    what = [configs / "digits.yaml", two_tasks]
    undisturbed = slurm.submit(*place, *what, whole, *settings, LAUNCHER=launcher, **HERE)
    finish(slurm, undisturbed, log)
    job = slurm.submit(*place, *what, run, *settings, LAUNCHER=launcher, **HERE)
    events = run / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (events.exists() and '"step": 3' in events.read_text()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    slurm.run("scancel", "--signal=USR1", job)
    finish(slurm, job, log, restarts=1)
    assert f"resuming {run} at step" in log.read_text()
    assert outcome(run) == outcome(whole)


@pytest.mark.slurm
def test_a_sweep_runs_every_combination_once(slurm, tmp_path, two_tasks, configs):
    for method in ("byol", "mocov2plus"):
        Setting(method, "torch", 1).write(tmp_path / f"{method}.yaml", configs)
    what = [tmp_path / "{method}.yaml", two_tasks, tmp_path / "runs"]
    lists = ["byol,mocov2plus", "0,0.01", "7"]
    settings = [*SETTINGS, "train.max_steps=1", "checkpoint.every_steps=0", "eval.knn=false"]
    place = ["--array=0-4%2", f"--output={tmp_path}/log-%a", ROOT / "slurm/sweep.sbatch"]
    job = slurm.submit(*place, *what, *lists, *settings, **HERE)
    for index in range(4):
        finish(slurm, f"{job}_{index}", tmp_path / f"log-{index}")
    slurm.wait(f"{job}_4", "FAILED")
    assert "sbatch --array=0-3" in (tmp_path / "log-4").read_text()
    made = {run.name: run for run in (tmp_path / "runs").iterdir()}
    assert sorted(made) == ["byol-0-7", "byol-0.01-7", "mocov2plus-0-7", "mocov2plus-0.01-7"]
    for name, run in made.items():
        results = json.loads((run / "results.json").read_text())
        said = (results["method"], f"{results['replay_fraction']:g}", str(results["seed"]))
        assert "-".join(said) == name
