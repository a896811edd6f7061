"""One preparation by several processes: the bytes of one, also where one of them is killed."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.stream import prepare as preparing
from kaizen_dist.stream.add_tasks import HowToWrite
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.shard_jobs import ShardJob
from kaizen_dist.stream.verify import verify

LAYOUT = {"a": 40, "b": 30, "c": 30, "d": 20}
GROUPS = "a,b;c"


def commands(source, out, count: int, *more: str) -> list[list[str]]:
    asked = [sys.executable, "-m", "kaizen_dist", "prepare", source, "--out", str(out)]
    asked += ["--classes-per-task", GROUPS, "--shard-size", "4", *more]
    return [[*asked, "--worker", f"{number}/{count}"] for number in range(count)]


def started(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def source(make_folder) -> str:
    return f"folder:{make_folder(LAYOUT)}"


@pytest.fixture
def alone(source, tmp_path):
    groups = [group.split(",") for group in GROUPS.split(";")]
    options = {"shard_size": 4, "progress": False}
    return prepare(source, tmp_path / "alone", classes_per_task=groups, **options).root


def test_three_processes_write_what_one_writes(source, alone, tmp_path, snapshot):
    out = tmp_path / "out"
    processes = [started(command) for command in commands(source, out, 3)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "2 tasks, 3 classes" in said
    assert snapshot(out) == snapshot(alone)
    assert not (out / ".prepare").exists()


@pytest.mark.parametrize("seed", range(3))
def test_shards_of_a_killed_process_are_taken_over(source, alone, tmp_path, snapshot, seed):
    out, chance = tmp_path / "out", random.Random(seed)
    processes = [started(command) for command in commands(source, out, 3)]
    deadline = time.monotonic() + 60
    while len(list(out.glob("task-*/*.tar"))) < chance.randint(0, 15):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = processes.pop(chance.randrange(3))
    killed.kill()
    killed.communicate()
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert snapshot(out) == snapshot(alone)


def test_processes_extend_together_and_a_late_one_finds_it_done(source, alone, tmp_path, snapshot):
    for name in ("one", "two"):
        subprocess.run(["cp", "-r", alone, tmp_path / name], check=True)
    extend(tmp_path / "one", source, progress=False)
    command = [sys.executable, "-m", "kaizen_dist", "extend", str(tmp_path / "two"), source]
    processes = [started([*command, "--worker", f"{n}/2"]) for n in range(2)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    late = CliRunner().invoke(app, [*command[3:], "--worker", "0/2"])
    assert late.exit_code == 0
    assert "has all images" in late.stderr
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    assert Stream.open(tmp_path / "two").classes == ["a", "b", "c", "d"]
    assert verify(tmp_path / "two", progress=False).problems == []


def killed_extension(begun, source, out, chance: random.Random, files: int) -> tuple[int, str]:
    """Two processes extend a copy of a stream; one of them is killed at a random moment, now and
    then both. How many were, and what of the stream was seen then."""
    shutil.copytree(begun, out)
    before = len(list(out.rglob("*")))
    command = [sys.executable, "-m", "kaizen_dist", "extend", str(out), source]
    processes = [started([*command, "--worker", f"{n}/2"]) for n in range(2)]
    wanted = before + chance.randint(1, files)
    while len(list(out.rglob("*"))) < wanted and any(p.poll() is None for p in processes):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.05))
    victims = chance.sample(processes, 1 if chance.random() < 0.7 else 2)
    for process in victims:
        process.kill()
    seen = Stream.open(out)
    assert verify(out, progress=False).problems == []
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == (-9 if process in victims else 0) or process.returncode == 0
        assert "Traceback" not in said
    extend(out, source, progress=False)
    return sum(process.returncode == -9 for process in processes), seen.fingerprint


MANY = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=MANY)])
def test_killed_extensions_are_finished_by_the_others(source, alone, tmp_path, snapshot, kills):
    """Nothing is lost, and until all of a task is there nothing of it is seen."""
    whole = Path(shutil.copytree(alone, tmp_path / "whole"))
    fingerprints = [
        Stream.open(alone).fingerprint,
        extend(whole, source, progress=False).fingerprint,
    ]
    added = [p for p in whole.rglob("*") if not (alone / p.relative_to(whole)).exists()]
    killed, chance, out = 0, random.Random(kills), tmp_path / "out"
    while killed < kills:
        more, seen = killed_extension(alone, source, out, chance, 3 * len(added))
        assert seen in fingerprints
        assert snapshot(out) == snapshot(whole)
        killed += more
        shutil.rmtree(out)


def test_one_alone_and_several_together_keep_out_of_each_others_way(source, tmp_path, monkeypatch):
    """While the one works the others are refused; its work is not theirs."""
    said = []

    def look(job: ShardJob) -> str:
        if not said:
            said.append(CliRunner().invoke(app, commands(source, tmp_path / "out", 2)[0][3:]))
        return f"task-{job.task:02d}-{job.part}-{job.number:06d}"

    monkeypatch.setattr(ShardJob, "name", property(look))
    groups = [group.split(",") for group in GROUPS.split(";")]
    options = {"shard_size": 4, "progress": False}
    prepare(source, tmp_path / "out", classes_per_task=groups, **options)
    assert isinstance(said[0].exception, UsageError)
    assert "another process is preparing" in str(said[0].exception)


def test_tasks_that_another_command_has_added_meanwhile_are_told(alone, source, monkeypatch):
    """Between the look at the stream and the lock; nothing is taken for done that is not."""
    look = preparing.load_manifest

    def then_somebody_else(root):
        found = look(root)
        monkeypatch.setattr(preparing, "load_manifest", look)
        extend(root, source, classes=["d"], name="theirs", progress=False)
        return found

    monkeypatch.setattr(preparing, "load_manifest", then_somebody_else)
    with pytest.raises(UsageError, match="meanwhile: start the same command again"):
        extend(alone, source, classes=["c"], name="ours", progress=False)
    assert [task.name for task in Stream.open(alone).tasks] == ["task 0", "task 1", "theirs"]
    assert not (alone / ".prepare").exists()


@pytest.mark.parametrize("worker", ["2/2", "x/2", "1", "-1/2", "1/0"])
def test_a_worker_that_is_none_is_refused(source, tmp_path, worker):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["prepare", source, "--out", str(out), "--worker", worker])
    assert isinstance(done.exception, UsageError)
    assert "worker" in str(done.exception)
    assert not out.exists()


def test_sruns_variables_say_which_of_how_many(source, tmp_path, monkeypatch):
    """A step of one task is one process; a batch script is no step."""
    seen = []
    monkeypatch.setattr(
        "kaizen_dist.stream.add_tasks.HowToWrite.__post_init__", lambda how: seen.append(how.worker)
    )
    variables = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"}
    for gone, expected in ((None, (1, 4)), ("SLURM_STEP_ID", None)):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if gone:
            monkeypatch.delenv(gone)
        arguments = ["prepare", source, "--out", str(tmp_path / f"{gone}"), "--tasks", "2"]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert seen[-1] == expected


def test_processes_are_counted_from_0():
    with pytest.raises(UsageError, match="they count from 0"):
        HowToWrite(worker=(4, 4))
