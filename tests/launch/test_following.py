"""A run that follows its stream: when it learns on, when it ends, and all of it on a real Slurm."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
import reaper
from cluster import Cluster
from killing import SMALL, Setting, outcome
from loopback import serving
from run_folders import NOW, began, ended, results, submitted
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.launch import submission
from kaizen_dist.launch.attempts import (
    AttemptLog,
    AttemptRow,
    Began,
    Ended,
    Followed,
    Stopped,
    Submitted,
    followed,
    stop_reason,
)
from kaizen_dist.launch.following import another_stream, at_a_glance, end_reason
from kaizen_dist.launch.job import FOLLOW_LOG, SubmittedRun
from kaizen_dist.launch.resources import read
from kaizen_dist.launch.submission import tasks_of
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.prepare import extend, prepare

pytestmark = pytest.mark.timeout(900)

FOLLOWED = Followed(job="5", time=NOW)
WELL = [submitted("7", guard="8"), began("7"), ended("7", 0, "finished")]


def job(**changed) -> SubmittedRun:
    given = {"root": Path("/r"), "stream": "/s", "tasks": 5, "chain": False, "follow": 60}
    return SubmittedRun(**given | {"resources": read(None, {})} | changed)


# ---- what follows from what ----------------------------------------------------------------


def test_a_run_is_followed_until_it_is_stopped():
    stopped = Stopped(job="9", time=NOW, reason="cancelled")
    assert followed([]) is None
    assert followed(WELL) is None
    assert followed([*WELL, FOLLOWED, *WELL]) == FOLLOWED
    assert followed([FOLLOWED, *WELL, stopped]) is None
    again = Followed(job="11", time=NOW)
    assert followed([FOLLOWED, *WELL, stopped, again]) == again


@pytest.mark.parametrize(
    "rows", [[FOLLOWED], [FOLLOWED, *WELL], [FOLLOWED, *WELL, submitted("9"), *WELL[1:]]]
)
def test_a_run_whose_jobs_ended_well_goes_on(rows):
    assert end_reason(job(), rows, (1, 0), learnt=1) is None


@pytest.mark.parametrize(
    ("since", "said"),
    [
        ([submitted("7")], "job 7, the last one that was to train, has not ended well"),
        ([submitted("7"), began("7")], "job 7"),
        ([*WELL[:2], ended("7", 1, "failed")], "job 7"),
        ([*WELL[:2], ended("7", 3, "bad data")], "the run ended with code 3"),
        ([*WELL, submitted("9"), began("9"), ended("9", 0, "finished")], "2 attempts in a row"),
    ],
    ids=["taken out", "lost", "failed", "bad data", "two jobs that learnt nothing"],
)
def test_a_run_whose_last_job_did_not_end_well_is_not_submitted_again_and_again(since, said):
    reason = end_reason(job(), [FOLLOWED, *since], None, learnt=0)
    assert reason is not None
    assert said in reason


def test_a_run_that_has_learnt_what_was_asked_for_ends():
    assert end_reason(job(until=2), [FOLLOWED, *WELL], (1, 0), learnt=1) is None
    assert end_reason(job(until=2), [FOLLOWED, *WELL], (2, 0), learnt=2) == (
        "2 tasks learnt, as asked for"
    )


def test_what_has_failed_before_a_job_ended_well_is_forgiven():
    """A run that is followed for years may lose more nodes than one that ends."""
    rows: list[AttemptRow] = []
    for task in range(4):
        number = str(10 + task)
        at = {"position": (task, 0)}
        rows += [began(f"{number}0").model_copy(update=at), ended(f"{number}0", 137, "lost node1")]
        rows += [began(number).model_copy(update={"position": (task, 5)}), ended(number, 0, "")]
    assert stop_reason(rows, (4, 0), retries=1) is None
    rows += [began("77").model_copy(update={"position": (4, 0)}), ended("77", 137, "lost node2")]
    assert stop_reason(rows, (4, 5), retries=1) is None
    assert "1 attempts failed" in (stop_reason(rows, (4, 5), retries=0) or "")


def test_the_jobs_of_a_run_end_with_the_task_that_was_asked_for():
    assert tasks_of(job(chain=True, until=3), first=1) == [1, 2]
    assert tasks_of(job(chain=True, until=9), first=3) == [3, 4]
    assert tasks_of(job(until=3)) == [None]
    assert job(until=3).train(None)[-2:] == ["--until", "3"]
    assert job(until=3).train(1)[-2:] == ["--until", "2"]


def test_a_stream_is_looked_at_as_it_is_now_and_known_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = prepare("digits", tmp_path / "s", classes_per_task=GROUPS[:1], progress=False).root
    with serving(folder) as server:
        begun = at_a_glance(server.url)
        grow(folder, GROUPS[1])
        assert (len(begun), len(at_a_glance(server.url))) == (1, 2)
        assert server.asked == ["/stream.json"] * 2

    learnt = results(finished=False)
    learnt["stream"] |= {"fingerprint": begun.fingerprint, "tasks": 1}
    learnt["stream"] |= {"train_counts": [1], "val_counts": [1]}
    learnt["task_classes"] = [["0", "1"]]
    known = Results.model_validate(learnt)
    assert another_stream(at_a_glance(str(folder)), known) is None
    assert another_stream(begun, None) is None
    other = prepare("digits", tmp_path / "t", classes_per_task=GROUPS[1:], progress=False)
    assert "is another stream" in (another_stream(other, known) or "")


# ---- on a real Slurm -----------------------------------------------------------------------

GROUPS = [["0", "1"], ["7", "2", "4"], ["3"]]
POLL = 3.0
STEPS = 6
# A machine that starts a Slurm, two ranks and other tests on two cores may pause for some seconds.
CHANGED = {"train.max_steps": STEPS, "parallel.silence_seconds": 20, "views.backend": "torch"}
SETTINGS = [f"{key}={value}" for key, value in (SMALL | CHANGED).items()]


class FollowedRun:
    """A run that was submitted with --follow."""

    def __init__(self, slurm: Cluster, config: Path, stream: Path, run: Path) -> None:
        self.slurm, self.stream, self.run = slurm, stream, run
        self.command = ["submit", str(config), *SETTINGS, "--stream", str(stream), "--json"]
        self.command += ["--out", str(run), "--nodes", "2", "--time", "20"]
        self.command += ["--follow", "--poll", f"{POLL:.0f}"]

    def submit(self, *flags: str) -> dict:
        return json.loads(self.kaizen(*self.command, *flags))

    def kaizen(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "kaizen_dist", *arguments]
        done = self.slurm.run(*command, check=False, seconds=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self) -> dict:
        return json.loads(self.kaizen("status", str(self.run), "--json"))["runs"][0]

    def rows(self, kind: type) -> list:
        return [row for row in AttemptLog(self.run).rows() if isinstance(row, kind)]

    def learnt(self) -> int:
        file = self.run / "results.json"
        return len(json.loads(file.read_text())["accuracy"]) if file.exists() else 0

    def queue(self) -> list[tuple[int, str, int, str]]:
        """(number, state, CPUs, name of the working directory) of all jobs that are not over."""
        shown = self.slurm.run("squeue", "-h", "-o", "%i %T %C %Z").stdout.split("\n")
        jobs = [line.split() for line in shown if line]
        return [(int(i), state, int(cpus), Path(at).name) for i, state, cpus, at in jobs]

    def watchers(self) -> list[int]:
        return [number for number, _, _, folder in self.queue() if folder == "slurm"]

    def kill_watcher(self) -> None:
        """SIGKILL the process that looks for new tasks."""
        for process in reaper.steps(self.slurm.folder):
            if "kaizen_dist.launch.following" in processes.command(process.pid):
                process.send(signal.SIGKILL)
                return
        raise AssertionError(f"nothing looks for new tasks\n{self.everything_said()}")

    def rests(self) -> bool:
        """Whether nothing but the watcher is in the queue."""
        return all(folder == "slurm" for *_, folder in self.queue())

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.everything_said()
            time.sleep(0.2)

    def look_twice(self) -> Iterator[list[tuple[int, str, int, str]]]:
        """The queue, again and again, until watchers that are not there yet have looked twice."""
        first = max(self.watchers())
        seen = {first}
        deadline = time.monotonic() + 120
        while len(seen) < 4:
            assert time.monotonic() < deadline, self.everything_said()
            yield (queue := self.queue())
            seen |= {number for number, *_ in queue if number > first}

    def everything_said(self) -> str:
        """For a failed assertion."""
        logs = sorted((self.run / "slurm" / "logs").glob("*.[elo][rou][gtr]"))
        texts = [f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs]
        rows = AttemptLog(self.run).rows()
        return "\n".join([str(self.queue()), *map(str, rows), *texts])

    def contents(self) -> dict[str, str]:
        """Every file of the run, but for Python's own."""
        files = (file for file in self.run.rglob("*") if file.is_file())
        kept = (file for file in files if "__pycache__" not in file.parts)
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def grow(stream: Path, group: list[str]) -> None:
    extend(stream, "digits", classes=group, progress=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory, configs) -> Path:
    file = tmp_path_factory.mktemp("config") / "moco.yaml"
    Setting("mocov2plus", "torch", 2).write(file, configs)
    return file


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, config):
    """`at_once(tasks, *settings)`: what a run comes to whose stream had its tasks at once."""

    def train(tasks: int, *settings: str) -> dict:
        folder = tmp_path_factory.mktemp("whole")
        prepare("digits", folder / "s", classes_per_task=GROUPS[:tasks], progress=False)
        command = [sys.executable, "-m", "kaizen_dist", "train", str(config), *SETTINGS, *settings]
        command += ["--stream", str(folder / "s"), "--out", str(folder / "run"), "--no-summary"]
        command += ["--procs", "2"]
        subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return outcome(folder / "run")

    return train


@pytest.fixture
def following(slurm, config, tmp_path) -> Iterator[FollowedRun]:
    """A run on a stream of one task, to be submitted."""
    stream = prepare("digits", tmp_path / "s", classes_per_task=GROUPS[:1], progress=False).root
    yield FollowedRun(slurm, config, stream, tmp_path / "run")
    slurm.run("scancel", "--full", "-u", str(os.getuid()), check=False)
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_a_run_whose_training_the_cluster_refuses_is_not_followed(following, monkeypatch):
    def refuse(*_) -> str:
        raise KaizenError("the cluster refuses the job")

    for name, value in following.slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submission, "submit_one", refuse)
    with pytest.raises(KaizenError, match="refuses"):
        CliRunner().invoke(app, following.command, catch_exceptions=False)
    assert [type(row) for row in AttemptLog(following.run).rows()] == [Followed, Stopped]
    following.until(lambda: not following.queue(), 30)


@pytest.mark.slurm
def test_a_run_learns_each_task_that_comes_in_a_job_of_its_own(following, at_once):
    """Two more tasks. In between the run holds nothing but, at times, one core for a second."""
    said = following.submit()
    assert len(said["jobs"]) == 1
    for group in GROUPS[1:]:
        following.until(lambda: following.learnt() > 0 and following.rests())
        before = following.contents()
        for queue in following.look_twice():
            assert all(cpus == 1 and folder == "slurm" for _, _, cpus, folder in queue)
            assert sum(state == "RUNNING" for _, state, *_ in queue) <= 1
        assert following.contents() == before, "a look that finds nothing changes nothing"
        learnt = following.learnt()
        grow(following.stream, group)
        following.until(lambda: following.learnt() > learnt)  # noqa: B023
    following.until(following.rests)
    assert outcome(following.run) == at_once(3)
    assert [row.position for row in following.rows(Began)] == [None, (1, 0), (2, 0)]
    assert [row.code for row in following.rows(Ended)] == [0, 0, 0]
    assert len(following.rows(Submitted)) == 3

    status = following.status()
    assert (status["state"], status["why"][:23]) == ("waiting", "for new tasks; looks at")
    assert status["looks_at"] is not None
    assert "which looks for new tasks of its stream" in following.kaizen(*following.command, code=2)
    following.kaizen("cancel", str(following.run))
    following.until(lambda: not following.queue(), 30)
    time.sleep(2 * POLL)
    assert not following.queue()
    status = following.status()
    assert (status["state"], status["why"]) == ("finished", "followed no longer: cancelled")


@pytest.mark.slurm
def test_a_task_that_comes_during_the_training_is_learnt_once(following, at_once):
    """And with the task that was asked for last the following ends."""
    longer = f"train.max_steps={5 * STEPS}"
    following.submit("--until", "2", longer)
    events = following.run / "events.jsonl"
    following.until(lambda: events.exists() and events.stat().st_size > 0)
    grow(following.stream, GROUPS[1])
    following.until(lambda: not following.queue())
    assert outcome(following.run) == at_once(2, longer)
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    steps = [(row["task"], row["step"]) for row in rows]
    assert steps == [(task, step) for task in range(2) for step in range(5 * STEPS)]
    assert [row.reason for row in following.rows(Stopped)] == ["2 tasks learnt, as asked for"]
    log = (following.run / "slurm" / "logs" / FOLLOW_LOG).read_text()
    assert "follows its stream no longer: 2 tasks learnt, as asked for" in log
    status = following.status()
    assert status["state"] == "finished"
    assert status["why"] == "followed no longer: 2 tasks learnt, as asked for"


@pytest.mark.slurm
def test_a_watcher_that_is_killed_while_it_submits_is_made_good_by_the_next(following, at_once):
    following.submit()
    following.until(lambda: following.learnt() == 1 and following.rests())
    grow(following.stream, GROUPS[1])
    following.until(lambda: len(following.watchers()) == 2)
    looking = min(following.watchers())
    following.kill_watcher()
    assert following.slurm.wait(looking, {"FAILED", "CANCELLED"})["ExitCode"] == "0:9"
    following.until(lambda: following.learnt() == 2 and following.rests())
    assert outcome(following.run) == at_once(2)
    assert [row.position for row in following.rows(Began)] == [None, (1, 0)]
    assert following.watchers()


@pytest.mark.slurm
def test_a_training_that_fails_is_not_submitted_again_and_again(following, at_once, tmp_path):
    """The images of the new task vanish; when they are back, the same command goes on."""
    following.submit()
    following.until(lambda: following.learnt() == 1 and following.rests())
    following.slurm.run("scancel", *map(str, following.watchers()))
    following.until(lambda: not following.queue(), 30)
    status = following.status()
    assert (status["state"], status["looks_at"]) == ("stopped", None)
    assert "no job looks for new tasks any more" in status["why"]

    assert following.submit()["jobs"] == []
    grow(following.stream, GROUPS[1])
    (shard,) = (following.stream / "task-01").glob("train-*.tar")
    hidden = shard.rename(tmp_path / shard.name)
    following.until(lambda: following.rows(Stopped) != [] and not following.queue())
    assert [row.code for row in following.rows(Ended)] == [0, 3]
    assert len(following.rows(Submitted)) == 2
    log = (following.run / "slurm" / "logs" / FOLLOW_LOG).read_text()
    assert "the run ended with code 3, which another attempt would not change" in log
    assert "`kaizen-dist submit --follow` takes it up again" in log
    assert following.status()["state"] == "stopped"

    hidden.rename(shard)
    grow(following.stream, GROUPS[2])
    following.submit()
    following.until(lambda: following.learnt() == 3 and following.rests())
    assert outcome(following.run) == at_once(3)
