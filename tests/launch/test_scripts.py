"""The plain batch scripts, as they lie in slurm/, on a real Slurm."""

import json
import signal
import socket
import sys
import time
from pathlib import Path

import processes
import pytest
import reaper
from killing import SMALL, outcome

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
HERE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]
LONG = pytest.mark.timeout(1200)
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def finish(slurm, job: str, log: Path, restarts: int = 0) -> dict[str, str]:
    ended = slurm.wait(job, ENDED, seconds=500, restarts=restarts)
    assert ended["JobState"] == "COMPLETED", log.read_text()
    return ended


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_slurm_would_take_it_as_it_stands(slurm, script):
    """And it says how it is used when it is used otherwise."""
    assert "to start at" in slurm.run("sbatch", "--test-only", script).stderr
    alone = slurm.run("bash", script, check=False)
    assert alone.returncode == 2
    assert alone.stderr.startswith(f"usage: {script.name} ")


@pytest.mark.slurm
def test_prepare_cuts_a_stream(slurm, tmp_path, two_tasks):
    log, stream = tmp_path / "log", tmp_path / "stream"
    job = slurm.submit(
        f"--output={log}", ROOT / "slurm/prepare.sbatch", "digits", stream, "--tasks=2", **HERE
    )
    finish(slurm, job, log)
    made = json.loads((stream / "stream.json").read_text())
    assert made == json.loads((two_tasks / "stream.json").read_text())


def prepares(pid: int, stream: Path) -> bool:
    """Whether a process is a Python that prepares this stream."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0] == sys.executable.encode() and str(stream).encode() in words


@pytest.mark.slurm
@LONG
def test_four_nodes_prepare_together_and_one_is_lost(slurm, tmp_path, two_tasks):
    """As `srun` starts them; the task that is killed leaves its shards to the others."""
    log, stream = tmp_path / "log", tmp_path / "stream"
    place = [f"--output={log}", "--nodes=4", "--cpus-per-task=1", ROOT / "slurm/prepare.sbatch"]
    job = slurm.submit(*place, "digits", stream, "--tasks=2", "--shard-size=4", **HERE)
    until(lambda: len(list(stream.glob("task-*/*.tar"))) > 5)
    workers = [known for known, _ in processes.processes() if prepares(known.pid, stream)]
    workers[-1].send(signal.SIGKILL)
    slurm.wait(job, ENDED, seconds=500)
    made = json.loads((stream / "stream.json").read_text())
    assert sum(task["train"] + task["val"] for task in made["tasks"]) == 1797
    whole = slurm.run(sys.executable, "-m", "kaizen_dist", "verify", stream, **HERE)
    assert "whole" in whole.stdout


@pytest.fixture
def waiting(slurm, tmp_path):
    """`waiting(launcher)`: a job of `train.sbatch` on two nodes whose ranks only wait for a signal;
    and its log."""
    jobs = []

    def start(launcher: str = "srun") -> tuple[str, Path]:
        log, program = tmp_path / "log", Path(__file__).with_name("stand_in.py")
        place = ["--nodes=2", "--exclusive", f"--output={log}", ROOT / "slurm/train.sbatch"]
        what = ["CONFIG", "STREAM", tmp_path / "run"]
        jobs.append(slurm.submit(*place, *what, PYTHON=str(program), LAUNCHER=launcher))
        until(lambda: log.exists() and log.read_text().count("starts") == 2)
        return jobs[0], log

    yield start
    slurm.run("scancel", *jobs)


def until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_warned_job_queues_itself_again(slurm, waiting):
    job, log = waiting()
    slurm.run("scancel", "--signal=USR1", job)
    finish(slurm, job, log, restarts=1)
    # No name of a node, which need not resolve.
    address = socket.gethostbyname(socket.gethostname())
    assert log.read_text().count(f"starts, to meet at {address}\n") == 4


def test_a_cancelled_job_stays_cancelled(slurm, waiting):
    job, log = waiting()
    slurm.run("scancel", job)
    assert slurm.wait(job, ENDED)["JobState"] == "CANCELLED"
    assert len(list(log.parent.glob("run-stopped-?"))) == 2
    assert slurm.job(job)["Restarts"] == "0"


@pytest.mark.slurm
def test_torchruns_ranks_are_warned_where_slurm_warns_tasks_alone(slurm, waiting):
    """As it does with cgroups; proctrack/linuxproc, here, signals what a task started as well."""
    job, log = waiting("torchrun")
    running = [(p, processes.command(p.pid)) for p in reaper.steps(slurm.folder)]
    tasks = [p for p, said in running if said[0].endswith("bash") and "--stream" in said]
    assert len(tasks) == 2
    for task in tasks:
        task.send(signal.SIGUSR1)
    finish(slurm, job, log, restarts=1)
    assert len(list(log.parent.glob("run-stopped-?"))) == 2
    assert log.read_text().count("starts") == 4


@pytest.mark.slurm
def test_a_preempted_job_makes_room_and_comes_back(slurm, waiting):
    job, log = waiting()
    place = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    urgent = slurm.submit(*place, "--wrap=sleep 1")
    slurm.wait(urgent, "COMPLETED")
    finish(slurm, job, log, restarts=1)
    assert log.read_text().count("starts") == 4


@pytest.mark.slurm
def test_bench_measures(slurm, tmp_path):
    log = tmp_path / "log"
    arguments = ["stream", "--samples=1000", "--ordered=1000", "--batch=8", "--json"]
    job = slurm.submit(f"--output={log}", ROOT / "slurm/bench.sbatch", *arguments, **HERE)
    finish(slurm, job, log)
    assert json.loads(log.read_text())["rows"]


@LONG
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


@LONG
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
    until(lambda: events.exists() and '"step": 3' in events.read_text())
    slurm.run("scancel", "--signal=USR1", job)
    finish(slurm, job, log, restarts=1)
    assert f"resuming {run} at step" in log.read_text()
    assert outcome(run) == outcome(whole)
