"""Runs on a real Slurm: submitted, interrupted in every way a queue knows, and brought home.

What every disturbed run is compared with is the same run on this machine, by `--procs 4`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from killing import METHODS, SMALL, outcome

from kaizen_dist.launch.attempts import AttemptLog, AttemptRow, Began, Ended, Stopped, Submitted
from kaizen_dist.stream.prepare import prepare

pytestmark = pytest.mark.timeout(1200)

# A machine that starts a Slurm, four ranks and other tests on two cores may pause for some seconds.
PATIENT = {"parallel.silence_seconds": 20}
SETTINGS = SMALL | PATIENT | {"train.max_steps": 12, "checkpoint.every_steps": 4}
SPREAD = ("--nodes", "2", "--ranks-per-node", "2")


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    return prepare("digits", tmp_path_factory.mktemp("s") / "s", tasks=3, progress=False).root


@pytest.fixture(scope="module")
def five_tasks(tmp_path_factory) -> Path:
    return prepare("digits", tmp_path_factory.mktemp("f") / "s", tasks=5, progress=False).root


@pytest.fixture(scope="module")
def config(tmp_path_factory, configs) -> Path:
    """The smallest run that has everything: momentum network, queue, teacher, replay."""
    lines = (configs / "digits.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("base:", "ssl:", "#"))]
    file = tmp_path_factory.mktemp("config") / "moco.yaml"
    head = ["method: mocov2plus", f"ssl: {json.dumps(METHODS['mocov2plus'])}"]
    file.write_text("\n".join([*head, *kept]))
    return file


def overrides(**changed) -> list[str]:
    return [f"{k}={v}" for k, v in (SETTINGS | changed).items()] + ["views.backend=torch"]


@pytest.fixture(scope="module")
def locally(tmp_path_factory, config, stream):
    """`locally(settings)`: what a run comes to on one machine."""

    def train(settings: list[str], stream: Path = stream) -> dict:
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        command = [sys.executable, "-m", "kaizen_dist", "train", str(config), *settings]
        command += ["--stream", str(stream), "--out", str(run), "--procs", "4", "--no-summary"]
        subprocess.run(command, check=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return outcome(run)

    return train


@pytest.fixture(scope="module")
def undisturbed(locally) -> dict:
    return locally(overrides())


class SubmittedRun:
    """A run that was submitted to a cluster."""

    def __init__(self, slurm: Cluster, run: Path, said: str) -> None:
        self.slurm, self.run = slurm, run
        self.jobs: list[str] = json.loads(said)["jobs"]

    @property
    def rows(self) -> list[AttemptRow]:
        return AttemptLog(self.run).rows()

    def of(self, kind: type) -> list:
        return [row for row in self.rows if isinstance(row, kind)]

    def reach(self, task: int, step: int, seconds: float = 300) -> None:
        """Until a step has been logged."""
        deadline = time.monotonic() + seconds
        while (task, step) > max(self.steps(), default=(-1, -1)):
            assert time.monotonic() < deadline, self.everything_said()
            time.sleep(0.1)

    def steps(self) -> list[tuple[int, int]]:
        file = self.run / "events.jsonl"
        rows = file.read_text().splitlines() if file.exists() else []
        return [(r["task"], r["step"]) for r in map(json.loads, rows)]

    def finish(self, seconds: float = 600) -> dict:
        """Until the run is finished and its last job over; what must not depend on the way."""
        deadline = time.monotonic() + seconds
        while not self._finished() or self._queued():
            assert time.monotonic() < deadline, self.everything_said()
            assert not self.of(Stopped), self.everything_said()
            time.sleep(0.5)
        return outcome(self.run)

    def leave(self, seconds: float = 300) -> None:
        """Until nothing of the run is in the queue."""
        deadline = time.monotonic() + seconds
        while self._queued():
            assert time.monotonic() < deadline, self.everything_said()
            time.sleep(0.5)

    def _finished(self) -> bool:
        file = self.run / "results.json"
        return file.exists() and json.loads(file.read_text())["finished"]

    def _queued(self) -> bool:
        return bool(self.slurm.run("squeue", "-h").stdout.strip())

    def everything_said(self) -> str:
        """For a failed assertion."""
        logs = sorted((self.run / "slurm" / "logs").glob("*.[elo][rou][gtr]"))
        texts = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs]
        queue = self.slurm.run("squeue").stdout
        return "\n".join([queue, *map(str, self.rows), *texts])


@pytest.fixture
def submit(slurm, stream, config, tmp_path):
    """`submit(*flags)`: a run of the settings above, in the queue."""

    def queue(
        *flags: str, settings: list[str] | None = None, stream: Path = stream
    ) -> SubmittedRun:
        run = tmp_path / "run"
        command = [sys.executable, "-m", "kaizen_dist", "submit", str(config)]
        command += [*(overrides() if settings is None else settings), "--json", "--time", "20"]
        command += ["--stream", str(stream), "--out", str(run), *flags]
        done = slurm.run(*command, check=False, seconds=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return SubmittedRun(slurm, run, done.stdout)

    yield queue
    slurm.run("scancel", "--full", "-u", str(os.getuid()), check=False)
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.2)


# ---- undisturbed, and every disturbance ----------------------------------------------------


@pytest.mark.slurm
def test_a_requeued_run_ends_as_one_on_this_machine(submit, undisturbed, slurm):
    """On 2 nodes; what `scontrol requeue` takes away in the second task comes back."""
    job = submit(*SPREAD)
    job.reach(1, 5)
    slurm.run("scontrol", "requeue", job.jobs[0])
    assert job.finish() == undisturbed
    begun = job.of(Began)
    assert [row.restart for row in begun] == [0, 1], job.everything_said()
    assert begun[1].position is not None
    # Its retry job was not needed, and has left the queue.
    assert len(job.of(Submitted)) == 1


@pytest.mark.slurm
def test_four_nodes_end_as_one_machine(submit, undisturbed):
    job = submit("--nodes", "4")
    assert job.finish() == undisturbed
    assert len(job.of(Began)[0].nodes) == 4
    assert [row.code for row in job.of(Ended)] == [0]


@pytest.mark.slurm
def test_a_higher_partition_preempts_the_run(submit, undisturbed, slurm):
    job = submit("--nodes", "4")
    job.reach(1, 2)
    urgent = slurm.submit("-p", "urgent", "-N4", "--exclusive", "--wrap", "srun sleep 5")
    slurm.wait(urgent, "COMPLETED")
    assert job.finish() == undisturbed
    assert len(job.of(Began)) == 2


@pytest.mark.slurm
@pytest.mark.timeout(2400)
def test_before_its_time_limit_the_run_saves_and_comes_back(submit, locally, slurm):
    """Slurm looks at limits about twice a minute, so the run is one of more than that."""
    settings = overrides(**{"train.max_steps": 100, "checkpoint.asynchronous": "false"})
    job = submit(*SPREAD, "--signal-seconds", "110", settings=settings)
    job.reach(0, 2)
    slurm.run("scontrol", "update", f"JobId={job.jobs[0]}", "TimeLimit=2")
    slurm.wait(job.jobs[0], "PENDING", restarts=1)
    slurm.run("scontrol", "update", f"JobId={job.jobs[0]}", "TimeLimit=20")
    assert job.finish(seconds=1200) == locally(settings)
    assert [row.code for row in job.of(Ended)] == [75, 0]


@pytest.mark.slurm
def test_a_node_that_dies_is_replaced(submit, undisturbed, slurm):
    job = submit(*SPREAD)
    job.reach(1, 2)
    slurm.kill_node(job.of(Began)[0].nodes[1])
    try:
        assert job.finish() == undisturbed
    finally:
        for row in job.of(Began)[:1]:
            slurm.revive_node(row.nodes[1])


@pytest.mark.slurm
def test_a_node_whose_rank_is_killed_is_left_out(submit, undisturbed, slurm):
    job = submit(*SPREAD)
    job.reach(1, 2)
    node = job.of(Began)[0].nodes[1]
    slurm.kill_rank(node)
    assert job.finish() == undisturbed
    assert node in job.of(Ended)[0].bad_nodes
    again = job.of(Submitted)[1]
    assert again.exclude == [node]
    assert node not in job.of(Began)[1].nodes


@pytest.mark.slurm
def test_a_killed_batch_shell_is_made_good(submit, undisturbed, slurm):
    job = submit(*SPREAD)
    # Early: what the shell has started may come to its end before Slurm has ended it.
    job.reach(0, 1)
    slurm.kill_batch_shell(job.jobs[0])
    assert job.finish() == undisturbed
    # Slurm ends all of the job. The attempt is killed as well, and its retry job submits another
    # one, or it hears the SIGTERM before, and has the job queued again.
    assert len(job.of(Began)) == 2
    assert all(row.exclude == [] for row in job.of(Submitted)), "no node is to blame"


@pytest.mark.slurm
def test_a_cancelled_run_saves_its_step_and_stays_cancelled(submit, undisturbed, slurm):
    """By plain `scancel`, which its retry job respects. Submitted again, it goes on."""
    job = submit(*SPREAD)
    job.reach(1, 2)
    slurm.run("scancel", job.jobs[0])
    job.leave()
    assert [row.code for row in job.of(Ended)] == [75]
    assert "was cancelled" in job.of(Stopped)[0].reason
    assert len(job.of(Submitted)) == 1
    again = submit(*SPREAD)
    again.leave()
    assert outcome(again.run) == undisturbed
    assert again.of(Began)[1].position > (1, 2)


# ---- chains --------------------------------------------------------------------


@pytest.mark.slurm
def test_a_chain_trains_a_task_a_job(submit, locally, five_tasks):
    settings = overrides(**{"train.max_steps": 4})
    job = submit("--chain", *SPREAD, settings=settings, stream=five_tasks)
    assert len(job.jobs) == 5
    assert job.finish() == locally(settings, five_tasks)
    assert [row.task for row in job.of(Submitted)] == [0, 1, 2, 3, 4]
    assert [row.job for row in job.of(Began)] == job.jobs


@pytest.mark.slurm
def test_a_chain_with_a_failing_third_link_ends_everywhere(submit, five_tasks, slurm, tmp_path):
    """Its task's shards vanish: the links after it have nothing to wait for."""
    settings = overrides(**{"train.max_steps": 4})
    job = submit("--chain", *SPREAD, settings=settings, stream=five_tasks)
    job.reach(1, 0)
    shards = sorted((five_tasks / "task-02").glob("train-*.tar"))
    hidden = [shard.rename(tmp_path / shard.name) for shard in shards]
    try:
        slurm.wait(job.jobs[2], "FAILED", seconds=300)
        deadline = time.monotonic() + 30
        while slurm.run("squeue", "-h").stdout.strip():
            assert time.monotonic() < deadline, job.everything_said()
            time.sleep(0.2)
        assert "code 3" in job.of(Stopped)[0].reason
        assert [row.job for row in job.of(Began)] == job.jobs[:3]
        assert len(job.of(Submitted)) == 5
    finally:
        for shard in hidden:
            shard.rename(five_tasks / "task-02" / shard.name)


# ---- what is wrong from the start ---------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--partition", "mian"], "no mian; did you mean main?"),
        (["--follow", "--follow-partition", "mian"], "no mian; did you mean main?"),
        (["--time", "2"], "nothing is left to train in"),
        (["--gpus-per-node", "8"], "8 are more than the 0 of a node"),
        (["--nodes", "9"], "9 are more than the 4"),
        (["--nodes", "3"], "world"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_queued(
    slurm, stream, config, tmp_path, flags, said
):
    command = [sys.executable, "-m", "kaizen_dist", "submit", config, *overrides()]
    command += ["--stream", stream, "--out", tmp_path / "run", *flags]
    done = slurm.run(*command, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
    assert slurm.run("squeue", "-h").stdout == ""


def test_several_runs_at_once_are_a_sweep(stream, config, tmp_path):
    command = [sys.executable, "-m", "kaizen_dist", "submit", str(config), "--stream", str(stream)]
    command += ["--out", str(tmp_path / "run"), "--array", "train.seed=0,1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "kaizen-dist sweep FILE --out DIR --slurm PROFILE" in done.stderr
    assert "grid: {train.seed: [0, 1]}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_slurm_the_local_command_is_offered(stream, config, tmp_path):
    command = [sys.executable, "-m", "kaizen_dist", "submit", str(config), *overrides()]
    command += ["--stream", str(stream), "--out", str(tmp_path / "run"), *SPREAD]
    path = os.pathsep.join(
        folder
        for folder in os.environ["PATH"].split(os.pathsep)
        if not (Path(folder) / "sbatch").exists()
    )
    done = subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "there is no Slurm here" in done.stderr
    assert "--procs 4" in done.stderr


def test_a_dry_run_prints_the_script_and_makes_nothing(slurm, stream, config, tmp_path):
    command = [sys.executable, "-m", "kaizen_dist", "submit", config, *overrides(), "--dry-run"]
    command += ["--stream", stream, "--out", tmp_path / "run", *SPREAD]
    done = slurm.run(*command)
    assert done.stdout.startswith("#!/bin/bash")
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert "#SBATCH --signal=USR2@120\n" in done.stdout
    assert not (tmp_path / "run").exists()
    slurm.run("bash", "-n", _written(tmp_path / "script", done.stdout))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_signals_of_the_batch_shell_are_not_srun_s():
    """What a Python process ignores its children ignore too: srun must not."""
    from kaizen_dist.launch.attempt import SignalRecord

    code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    before = signal.getsignal(signal.SIGTERM)
    record = SignalRecord()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "True\n"
        assert record.ending
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, before if number == signal.SIGTERM else signal.SIG_DFL)
