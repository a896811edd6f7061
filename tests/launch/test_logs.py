"""Logs of a run's attempts: in order, one of them, and as they grow."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import began, ended, make_run, submitted

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.launch import logs

HERE = {"PYTHONPATH": str(Path(__file__).parents[2])}
ROWS = [
    submitted("7"),
    began("7"),
    ended("7", 137, "lost node2"),
    began("7", 1),
    submitted("9"),
    submitted("11"),
]


@pytest.fixture
def run(tmp_path):
    """The first attempt has written, the second only its batch shell, the third nothing."""
    folder = make_run(tmp_path / "run", rows=ROWS)
    (folder / "slurm" / "logs").mkdir()
    (folder / "slurm" / "logs" / "train-7.log").write_text("step 1\nstep 2 \u2713\n")
    (folder / "slurm" / "logs" / "7_0_log.err").write_text("not shown\n")
    (folder / "slurm" / "logs" / "train-9.log").touch()
    (folder / "slurm" / "logs" / "9_0_log.err").write_text("no such partition\n")
    return folder


def shown(attempts):
    out = io.BytesIO()
    logs.show(attempts, out)
    return out.getvalue().decode().splitlines()


def test_all_attempts_in_order(run):
    assert shown(logs.chosen(run, None)) == [
        "==> attempt 1 of 3: job 7, on node1,node2, started 2 times, lost node2 <==",
        "step 1",
        "step 2 \u2713",
        "==> attempt 2 of 3: job 9 <==",
        "no such partition",
        "==> attempt 3 of 3: job 11 (no output yet) <==",
    ]


def test_what_the_jobs_that_look_for_new_tasks_have_found(run):
    log = run / "slurm" / "logs" / "follow.log"
    log.touch()
    assert [attempt.job for attempt in logs.chosen(run, None)] == ["7", "9", "11"]
    log.write_text("1 new task to learn\n")
    assert shown(logs.chosen(run, None))[-2:] == [
        "==> looks for new tasks <==",
        "1 new task to learn",
    ]
    assert logs.chosen(run, 0)[0].job == "9"


def test_one_attempt(run):
    assert shown(logs.chosen(run, 2))[1:] == ["no such partition"]
    # The last that has something to say.
    assert logs.chosen(run, 0)[0].job == "9"
    with pytest.raises(UsageError, match="has 3"):
        logs.chosen(run, 4)


def test_a_local_run_has_no_logs(tmp_path):
    with pytest.raises(DataError, match="terminal"):
        logs.chosen(make_run(tmp_path / "run"), None)
    with pytest.raises(DataError, match="no such folder"):
        logs.chosen(tmp_path / "none", None)


def test_following_goes_on_to_the_next_attempt(run, tmp_path):
    said = tmp_path / "said"
    command = [sys.executable, "-m", "kaizen_dist", "logs", run, "--follow"]
    with said.open("wb") as out, subprocess.Popen(command, stdout=out, env=os.environ | HERE) as it:
        try:
            wait_for(said, "no such partition")
            with (run / "slurm" / "logs" / "train-9.log").open("a") as log:
                log.write("half a line")
                log.flush()
                wait_for(said, "half a line")
                log.write(", and its end\n")
            wait_for(said, "half a line, and its end\n")
            (run / "slurm" / "logs" / "train-11.log").write_text("step 3\n")
            wait_for(said, "job 11 <==\nstep 3\n")
            it.send_signal(signal.SIGINT)
            assert it.wait(30) == 0
        finally:
            it.kill()
    assert said.read_text().count("no such partition") == 1


def wait_for(file, text, seconds=60):
    deadline = time.monotonic() + seconds
    while text not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.1)
