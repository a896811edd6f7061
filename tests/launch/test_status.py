"""States of runs by attempt log and queue, the table, and idle GPUs of a real cluster."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import localtime, strftime

import cluster as slurm_of_tests
import pytest
from rich.console import Console
from run_folders import NOW, began, ended, event, make_run, submitted
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.formatting import SPACE, duration
from kaizen_dist.launch import status
from kaizen_dist.launch.attempts import Followed, Stopped
from kaizen_dist.launch.progress import Progress
from kaizen_dist.launch.slurm import SlurmJob
from kaizen_dist.launch.status_table import status_table

HERE = {"PYTHONPATH": str(Path(__file__).parents[2])}


def queue(*jobs):
    """A queue of (number, state) or (number, state, nodes)."""
    return {job[0]: SlurmJob(job[0], job[1], "Resources", "".join(job[2:]), "") for job in jobs}


def told(rows, jobs, where=None):
    found = status.status_of(Path("run"), rows, jobs, where or Progress(silence=1e6))
    return found.state, found.why


RUNNING = [submitted("7", guard="8"), began("7")]


def test_what_the_queue_knows_comes_first():
    assert told(RUNNING, queue(("7", "RUNNING"))) == ("running", "")
    assert told(RUNNING, queue(("7", "COMPLETING"))) == ("running", "")
    assert told(RUNNING, queue(("7", "PENDING"))) == ("pending", "Resources")
    assert told(RUNNING, queue(("7", "PENDING")), Progress(finished=True)) == ("finished", "")


def test_what_the_attempt_log_says_of_a_run_without_a_job():
    preempted = [*RUNNING, ended("7", 75, "preempted")]
    assert told(preempted, queue(("7", "PENDING"))) == ("pending", "Resources")
    assert told(preempted, {}) == ("preempted", "preempted")
    failed = [*RUNNING, ended("7", 137, "lost node2")]
    assert told(failed, {}) == ("failed", "lost node2")
    assert told(failed, queue(("7", "FAILED"), ("8", "PENDING")))[0] == "pending"
    stopped = [*failed, Stopped(job="8", time=NOW, reason="2 attempts made no progress")]
    assert told(stopped, {}) == ("stopped", "2 attempts made no progress")
    assert told(failed, queue(("7", "CANCELLED"))) == ("stopped", "job 7 was cancelled")
    assert told(RUNNING, {})[0] == "failed"
    assert told([submitted("7")], {})[0] == "unknown"


FOLLOWED = [Followed(job="5", time=NOW), *RUNNING, ended("7", 0, "finished")]


def test_a_run_that_follows_its_stream():
    """Its watcher works in RUN/slurm; one of another run is not its own."""
    watcher = SlurmJob("9", "PENDING", "BeginTime", "", str(Path("run/slurm").resolve()), NOW + 60)
    other = replace(watcher, id="10", folder=str(Path("other/slurm").resolve()), start=NOW)
    jobs = {"9": watcher, "10": other}
    finished = Progress(finished=True)

    def seen(rows, jobs, where=finished):
        return status.status_of(Path("run"), rows, jobs, where)

    when = strftime("%H:%M:%S", localtime(NOW + 60))
    waiting = seen(FOLLOWED, jobs)
    assert (waiting.state, waiting.why) == ("waiting", f"for new tasks; looks at {when}")
    assert waiting.looks_at == NOW + 60
    assert seen(FOLLOWED, jobs, Progress(silence=1e6)).state == "waiting"
    held = seen(FOLLOWED, {"9": replace(watcher, reason="JobHeldUser", start=None)})
    assert held.why == "for new tasks; job 9 waits: JobHeldUser"
    training = seen(FOLLOWED, jobs | queue(("7", "PENDING")))
    assert (training.state, training.why, training.looks_at) == ("pending", "Resources", NOW + 60)
    lost = seen(FOLLOWED, {"10": other})
    assert (lost.state, lost.looks_at) == ("stopped", None)
    assert "no job looks for new tasks any more" in lost.why
    assert seen(FOLLOWED, None).state == "finished", "the queue is not known"


def test_a_run_that_follows_its_stream_no_longer():
    def stopped(*rows):
        return told([*rows, Stopped(job="9", time=NOW, reason="why not")], {}, Progress(finished=1))

    assert stopped(*FOLLOWED) == ("finished", "followed no longer: why not")
    failed = [submitted("9"), began("9"), ended("9", 3, "bad data")]
    assert stopped(*FOLLOWED, *failed) == ("stopped", "followed no longer: why not")
    assert stopped(*FOLLOWED[1:]) == ("finished", "")


def test_without_a_queue_the_files_tell():
    fresh, old = Progress(silence=100.0, interval=1.0), Progress(silence=121.0, interval=1.0)
    assert [told([], None, where)[0] for where in (fresh, old, Progress())] == [
        "running",
        "stopped",
        "unknown",
    ]
    # Rows that are a minute apart anyway.
    assert told([], None, Progress(silence=1000.0, interval=60.0))[0] == "running"
    assert told(RUNNING, None, fresh)[0] == "running"


def test_a_run_of_somebody_else_is_told_by_its_files(tmp_path, monkeypatch):
    """The queue is asked for one's own jobs, of which none are his, whatever their numbers."""
    run = make_run(tmp_path / "run", [event(0, 19)], rows=RUNNING)
    monkeypatch.setattr(status, "_query", lambda _: (queue(("7", "CANCELLED")), {}, ""))
    assert status.overview([run], NOW).runs[0].state == "stopped"
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert status.overview([run], NOW).runs[0].state == "running"


def test_the_job_that_matters_in_a_chain():
    rows = [submitted("1", 0), submitted("3", 1), submitted("5", 2), began("1"), began("3")]
    waiting = queue(("1", "COMPLETED"), ("3", "RUNNING", "node[1-2]"), ("5", "PENDING"))
    assert status.current_job(rows, waiting) == "3"
    assert status.status_of(Path("r"), rows, waiting, Progress()).nodes == "node[1-2]"
    assert status.current_job(rows, queue(("5", "PENDING"))) == "5"
    assert status.current_job(rows, {}) == "3"
    assert status.current_job(rows[:3], {}) == "5"
    assert status.current_job([], {}) is None


def test_restarts_are_attempts_beyond_the_first_of_a_link():
    alone = [submitted("1"), began("1"), began("1", 1), submitted("4"), began("4")]
    assert status.restarts(alone) == 2
    chain = [submitted("1", 0), submitted("3", 1), began("1"), began("3"), began("3", 1)]
    assert status.restarts(chain) == 1
    assert status.restarts([]) == 0


def test_runs_are_found_beneath_folders(tmp_path):
    for name in ("b", "a/deep/er", ".hidden"):
        make_run(tmp_path / name)
    make_run(tmp_path / "b" / "export" / "inner")
    only_queued = tmp_path / "c"
    (only_queued / "slurm").mkdir(parents=True)
    (only_queued / "slurm" / "attempts.jsonl").touch()
    names = [str(run.relative_to(tmp_path)) for run in status.find_runs(tmp_path)]
    assert names == ["a/deep/er", "b", "c"]
    assert list(status.find_runs(tmp_path / "b")) == [tmp_path / "b"]
    with pytest.raises(DataError, match="no such folder"):
        list(status.find_runs(tmp_path / "none"))


def test_an_overview(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    make_run(tmp_path / "done", finished=True)
    make_run(tmp_path / "goes", [event(0, 19)], checkpoints=[("t00-s000010", 4000.0)])
    broken = make_run(tmp_path / "torn", rows=RUNNING)
    text = (broken / "slurm" / "attempts.jsonl").read_text()
    (broken / "slurm" / "attempts.jsonl").write_text(f"nonsense\n{text}")
    seen = status.overview([tmp_path, tmp_path / "goes"], NOW)
    assert [(Path(r.run).name, r.state) for r in seen.runs] == [
        ("goes", "running"),
        ("torn", "damaged"),
        ("done", "finished"),
    ]
    assert "line 1" in seen.runs[1].why
    plain = json.loads(json.dumps(seen.to_json()))
    assert plain["runs"][0]["eta_seconds"] == 30.0
    assert (plain["gpus"], plain["problem"]) == ({}, "")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no run in"):
        status.overview([empty], NOW)


def test_the_table_fits_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    make_run(tmp_path / "a-run", [event(0, 19)], checkpoints=[("t00-s000010", 4000.0)])
    monkeypatch.chdir(tmp_path)
    seen = status.overview([Path("a-run")], NOW)
    seen = status.Overview(seen.runs, {"main": (3, 32)}, "")
    out = io.StringIO()
    Console(file=out, width=80).print(status_table(seen))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "a-run running task 1/2, epoch 4 40 t00-s000010",
        "local step 20 of 50 30 s 1 h 6 min ago",
        "GPUs idle: 3 of 32 in main",
    ]


def test_what_all_runs_have_in_common_is_said_once():
    def shown(*runs):
        found = [status.RunStatus(run, "running", "", None, "", 0, Progress()) for run in runs]
        out = io.StringIO()
        Console(file=out, width=80).print(status_table(status.Overview(found, {})))
        return out.getvalue().split()

    assert {"x/seed-1", "y/seed-2", "runs/sweep/"} <= set(
        shown("runs/sweep/x/seed-1", "runs/sweep/y/seed-2")
    )
    assert {"runs/a", "/data/b"} <= set(shown("runs/a", "/data/b"))
    assert {"a", "b"} <= set(shown("a", "b"))
    assert "runs/a" in shown("runs/a")


def test_durations():
    spans = (None, 0.4, 59.4, 119, 3 * 3600 + 12 * 60 + 59, 2 * 86400 + 3 * 3600)
    shown = [duration(span).replace(SPACE, " ") for span in spans]
    assert shown == ["–", "0 s", "59 s", "1 min 59 s", "3 h 12 min", "2 d 3 h"]


def test_watching_ends_with_ctrl_c(tmp_path):
    run = make_run(tmp_path / "run", [event(0, 19)])
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "kaizen_dist", "status", run, "--watch"]
    with subprocess.Popen(command, stdout=theirs, env=os.environ | HERE) as watching:
        try:
            said = b""
            while b"step 20 of 50" not in said:
                said += os.read(ours, 1000)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 0
        finally:
            watching.kill()
            os.close(ours)
            os.close(theirs)


def test_nothing_to_show_is_bad_data(tmp_path):
    assert isinstance(CliRunner().invoke(app, ["status", str(tmp_path)]).exception, DataError)


@pytest.mark.slurm
def test_gpus_idle_and_a_job_of_a_run(tmp_path, cluster_folder):
    """Two nodes of four GPUs; a job has three of them."""
    if reason := slurm_of_tests.why_not():
        pytest.skip(reason)
    here = slurm_of_tests.Cluster(cluster_folder, nodes=2, gpus=4)
    try:
        here.start()
        job = here.submit("--gpus-per-node=3", "--nodes=1", "--wrap", "sleep 100")
        here.wait(job, "RUNNING")
        make_run(tmp_path / "run", [event(0, 19)], rows=[submitted(job), began(job)])
        command = (sys.executable, "-m", "kaizen_dist", "status", tmp_path / "run", "--json")
        said = json.loads(here.run(*command, **HERE).stdout)
        assert said["gpus"]["main"] == {"idle": 5, "total": 8}
        (run,) = said["runs"]
        assert (run["state"], run["job"], run["nodes"]) == ("running", job, "node1")
        here.run("scancel", job)
        here.wait(job, "CANCELLED")
        said = json.loads(here.run(*command, **HERE).stdout)
        assert said["gpus"]["main"]["idle"] == 8
        assert said["runs"][0]["why"] == f"job {job} was cancelled"
    finally:
        here.stop()
