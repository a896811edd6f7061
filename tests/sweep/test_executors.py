"""The executor of this machine: children, their locks, and how they end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from kaizen_dist.config import Config
from kaizen_dist.sweep.executors import LocalExecutor, SweepJob


def job(tmp_path: Path, name: str = "a") -> SweepJob:
    """A run that fails at once: there is no such configuration."""
    return SweepJob(
        config=Config(),
        file=tmp_path / "none.yaml",
        stream="none",
        out=tmp_path / name,
        log=tmp_path / "logs" / name,
        lock=tmp_path / "locks" / name,
    )


def ended(running, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while (code := running.poll()) is None:
        assert time.monotonic() < deadline, "did not end"
        time.sleep(0.02)
    return code


def holder(lock: Path) -> subprocess.Popen:
    """Another process that holds a lock until its input ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    code = (
        f"import fcntl, sys; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_job_has_a_code_and_a_log(tmp_path):
    executor, asked = LocalExecutor(1), job(tmp_path)
    running = executor.start(asked)
    assert ended(running) == 2
    assert "none.yaml" in running.error()


def test_a_run_that_is_alive_elsewhere_is_not_started(tmp_path):
    executor, asked = LocalExecutor(1), job(tmp_path)
    other = holder(asked.lock)
    assert executor.start(asked) is None
    other.communicate()
    running = executor.start(asked)
    assert running is not None
    assert ended(running) != 0


def test_a_killed_run_says_so_as_a_shell_does(tmp_path):
    executor, asked = LocalExecutor(1), job(tmp_path)
    running = executor.start(asked)
    running.kill()
    assert ended(running) == 128 + 9


def test_every_slot_has_gpus_of_its_own():
    executor = LocalExecutor(jobs=3, procs=2, devices=["0", "1", "4", "5"])
    given = [executor._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert given == ["0,1", "4,5", "0,1"]
    assert LocalExecutor(1)._environment(0) == {}


def test_a_child_is_told_to_end_when_its_parent_is_killed(tmp_path):
    """The parent starts a tied child that writes down which signal it got, and is SIGKILLed."""
    told = tmp_path / "told.json"
    child = (
        "import json, signal, time, sys, os\n"
        f"def hear(n, _): open({str(told)!r}, 'w').write(json.dumps(int(n))); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, hear); print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, os, time\n"
        "module = 'kaizen_dist.distributed.die_with_parent'\n"
        "tied = [sys.executable, '-m', module, str(os.getpid())]\n"
        f"subprocess.Popen([*tied, sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline, "nobody told the child"
        time.sleep(0.05)
    assert json.loads(told.read_text()) == 15


def test_a_command_whose_parent_is_gone_already_is_not_begun(tmp_path):
    stranger = str(os.getpid() + 1)
    tied = [sys.executable, "-m", "kaizen_dist.distributed.die_with_parent", stranger]
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    done = subprocess.run([*tied, sys.executable, "-c", code], check=False)
    assert done.returncode == 128 + 15
    assert not (tmp_path / "ran").exists()
