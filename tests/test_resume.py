"""Stopping and going on: signals, other world sizes, damaged checkpoints, a full disk."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import RANK, Setting, outcome, unused_port

from kaizen_dist.stream.prepare import prepare

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def three_tasks(tmp_path_factory) -> Path:
    return prepare("digits", tmp_path_factory.mktemp("s") / "s", tasks=3, progress=False).root


@pytest.fixture(scope="module")
def moco(tmp_path_factory, configs) -> Path:
    """A small configuration of a method with momentum network and queue."""
    file = tmp_path_factory.mktemp("config") / "moco.yaml"
    Setting("mocov2plus", "torch", 1).write(file, configs)
    return file


def arguments(config: Path, stream: Path, run: Path, *overrides: str) -> list[str]:
    given = Setting("mocov2plus", "torch", 1).arguments(config, stream, run)
    # So that what is on disk at a kill is known.
    return [*given, "checkpoint.asynchronous=false", *overrides]


def kaizen(given: list[str], code: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "kaizen_dist", *given],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def whole(shared_folder, moco, three_tasks) -> Path:
    """A run that nothing disturbed."""
    run = shared_folder / "whole"
    kaizen(arguments(moco, three_tasks, run))
    return run


def wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def names(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").glob("t*"))


def test_a_run_in_parts_is_the_whole_run(tmp_path, moco, three_tasks, whole):
    """As the jobs of a chain train it."""
    run = tmp_path / "parts"
    kaizen([*arguments(moco, three_tasks, run), "--until", "1"])
    results = json.loads((run / "results.json").read_text())
    assert (results["finished"], len(results["accuracy"])) == (False, 1)
    again = kaizen([*arguments(moco, three_tasks, run), "--until", "1"])
    assert "has learnt 1 tasks already" in again.stderr
    kaizen(arguments(moco, three_tasks, run))
    assert outcome(run) == outcome(whole)


# ---- signals ----------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "procs"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 2)])
def test_a_signal_saves_the_step_and_exits_75(tmp_path, moco, three_tasks, number, procs):
    """Then the same command ends as if nothing had been."""
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    # Saved by nothing but the signal: no checkpoint among the steps of a task.
    slow = ("train.max_steps=16", "checkpoint.every_steps=0", "--procs", str(procs))
    given = arguments(moco, three_tasks, stopped, *slow)
    command = [sys.executable, "-m", "kaizen_dist", *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        events = stopped / "events.jsonl"
        wait_for(
            lambda: events.exists() and '"task": 1, "epoch": 0, "step": 2' in events.read_text()
        )
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert "with all saved" in said
    assert "Traceback" not in said
    (step,) = [int(name[-6:]) for name in names(stopped) if name.startswith("t01-s")][-1:]
    assert 2 < step < 16
    kaizen(given)
    kaizen(arguments(moco, three_tasks, undisturbed, *slow))
    assert outcome(stopped) == outcome(undisturbed)


@pytest.mark.cold  # its ranks are found by what /proc says of them
@pytest.mark.slow
def test_ranks_whose_starter_is_killed_save_and_end(tmp_path, moco, three_tasks):
    """Else they would go on writing where the same command begins anew."""
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run, "train.max_steps=16", "--procs", "2")
    with subprocess.Popen([sys.executable, "-m", "kaizen_dist", *given]) as process:
        wait_for(lambda: (run / "events.jsonl").exists())
        wait_for(lambda: (run / "events.jsonl").stat().st_size > 0)
        process.kill()
    before = names(run)
    wait_for(lambda: names(run) != before)
    wait_for(lambda: not ranks_of(run))
    kaizen(given)


def ranks_of(run: Path) -> list[Path]:
    """Processes that train in this folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = file.read_bytes().decode(errors="replace").split("\0")
            found += [file] if str(run) in words and "train" in words else []
    return found


def test_a_second_signal_ends_at_once(tmp_path, moco, three_tasks):
    given = arguments(moco, three_tasks, tmp_path / "run", "train.max_steps=16")
    with subprocess.Popen(
        [sys.executable, str(RANK), *given],
        stderr=subprocess.PIPE,
        env=os.environ | {"PAUSE_AT": "kaizen_dist.engine.base:Engine.step after 3"},
    ) as process:
        wait_for(lambda: (tmp_path / "run" / "paused").exists())
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGUSR1)
        # Within a second it may be an echo of the first.
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_after_its_grace_a_step_is_not_waited_for(tmp_path, moco, three_tasks):
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run, "checkpoint.grace_seconds=1")
    with subprocess.Popen(
        [sys.executable, str(RANK), *given],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PAUSE_AT": "kaizen_dist.engine.base:Engine.step after 3"},
    ) as process:
        wait_for(lambda: (run / "paused").exists())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "the checkpoint before stands" in said
    assert names(run) == ["t00-s000002"]


# ---- other places to go on --------------------------------------------------------------


def run_until(given: list[str], world: int, record: Path, kill_at: str = "") -> None:
    """All ranks of a run, each with its sample ids recorded; until the end or a kill."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), *given],
            env=os.environ
            | address
            | sizes
            | {"RANK": str(r), "LOCAL_RANK": str(r)}
            | {"KILL_AT": kill_at, "RECORD_IDS": str(record / f"{r}.jsonl")},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for r in range(world)
    ]
    codes = [process.wait(300) for process in ranks]
    assert codes == [-signal.SIGKILL if kill_at else 0] * world


def global_batches(record: Path) -> list[tuple[int, int, list[int]]]:
    """(task, step, ids in the order of the lanes) of every step that the ranks of a world took."""
    files = sorted(record.glob("*.jsonl"), key=lambda f: int(f.stem))
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    batches = []
    for rows in zip(*ranks, strict=True):
        assert len({(r["task"], r["step"]) for r in rows}) == 1
        ids = [sample for row in rows for sample in row["ids"]]
        batches.append((rows[0]["task"], rows[0]["step"], ids))
    return batches


def test_other_world_sizes_go_on_with_the_same_samples(tmp_path, moco, three_tasks):
    """4 -> 2 -> 1 -> 4 ranks, within tasks and across their switch.

    With SGD and maps of more than one pixel: AdamW divides a gradient by its own size, and
    BatchNorm a channel that hardly varies by almost nothing, so that both enlarge rounding
    (to 6e-5 of the loss, with either of them).
    """
    sgd = ("optim.name=sgd", "optim.lr=0.01", "model.stem=cifar")
    whole, elastic = tmp_path / "whole", tmp_path / "elastic"
    (tmp_path / "all").mkdir()
    run_until(arguments(moco, three_tasks, whole, *sgd), 4, tmp_path / "all")
    taken: dict[tuple[int, int], list[int]] = {}
    step = "kaizen_dist.engine.base:Engine.step before"
    for part, (world, kill_at) in enumerate(
        [(4, f"{step} 4"), (2, f"{step} 4"), (1, f"{step} 4"), (4, "")]
    ):
        record = tmp_path / f"part{part}"
        record.mkdir()
        run_until(arguments(moco, three_tasks, elastic, *sgd), world, record, kill_at)
        for task, number, ids in global_batches(record):
            # Those after the last checkpoint are taken once more.
            assert taken.setdefault((task, number), ids) == ids
    expected = {(task, number): ids for task, number, ids in global_batches(tmp_path / "all")}
    assert taken == expected
    ours, theirs = outcome(elastic), outcome(whole)
    for row, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5), row
    val = json.loads((whole / "results.json").read_text())["stream"]["val_counts"]
    for row, other in zip(ours["accuracy"], theirs["accuracy"], strict=True):
        for accuracy, expected_accuracy, images in zip(row, other, val, strict=True):
            if accuracy is not None:
                assert abs(accuracy - expected_accuracy) <= 1.001 / images


def test_a_run_goes_on_by_its_folder_alone(tmp_path, moco, three_tasks, whole):
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run)
    killed = os.environ | {"KILL_AT": "kaizen_dist.engine.base:Engine.step before 7"}
    subprocess.run([sys.executable, str(RANK), *given], env=killed, check=False)
    refused = kaizen(["resume", str(run), "optim.lr=0.5"], code=2)
    assert "optim.lr: 0.001 -> 0.5" in refused.stderr
    assert "--allow" in refused.stderr
    kaizen(["resume", str(run), "log.every_steps=1"])
    assert outcome(run) == outcome(whole)


FIRST_VERSION = """
from kaizen_dist.__main__ import main
from kaizen_dist.runs import resume

resume.NEWEST = 1
main()
"""


def test_a_run_replays_to_its_end_in_the_order_it_began_with(tmp_path, moco, three_tasks, whole):
    """Where a later version goes on with it, by the same command."""
    undisturbed, begun = tmp_path / "undisturbed", tmp_path / "begun"
    for run, until in ((undisturbed, "3"), (begun, "2")):
        given = [*arguments(moco, three_tasks, run), "--until", until]
        subprocess.run([sys.executable, "-c", FIRST_VERSION, *given], timeout=300, check=True)
    kaizen(arguments(moco, three_tasks, begun))
    ours, newest = outcome(begun), outcome(whole)
    assert ours == outcome(undisturbed)
    # Nothing is replayed in the first task.
    for row, other in zip(ours["rows"], newest["rows"], strict=True):
        assert (row["loss"] == other["loss"]) == (row["task"] == 0), row


@pytest.mark.slow
def test_a_changed_rate_can_be_allowed(tmp_path, moco, three_tasks, whole):
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run)
    killed = os.environ | {"KILL_AT": "kaizen_dist.engine.base:Engine.step before 7"}
    subprocess.run([sys.executable, str(RANK), *given], env=killed, check=False)
    kaizen(["resume", str(run), "optim.lr=0.0005", "--allow"])
    assert "lr: 0.0005" in (run / "config.yaml").read_text()
    rows, others = outcome(run)["rows"], outcome(whole)["rows"]
    assert rows[:6] == others[:6]
    for row, other in zip(rows[6:], others[6:], strict=True):
        # Every task begins at `optim.warmup_start_lr`, which has not changed.
        assert row["lr"] < other["lr"] or row["step"] == 0


def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path):
    assert "holds no run" in kaizen(["resume", str(tmp_path)], code=2).stderr


# ---- damage -----------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path, moco, three_tasks) -> tuple[Path, list[str]]:
    """A run killed in its second task, with two checkpoints, and the command to go on."""
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run)
    killed = os.environ | {"KILL_AT": "kaizen_dist.engine.base:Engine.step before 8"}
    subprocess.run([sys.executable, str(RANK), *given], env=killed, check=False)
    assert names(run) == ["t01-s000000", "t01-s000002"]
    return run, given


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(unfinished, whole):
    run, given = unfinished
    file = next((run / "checkpoints" / "t01-s000002").glob("*.distcp"))
    flip(file)
    said = kaizen(given).stderr
    assert f"{file} is damaged" in said
    assert "at step 0 of task 2/3" in said
    assert outcome(run) == outcome(whole)


def test_no_whole_checkpoint_exits_2_and_nothing_is_lost(unfinished):
    run, given = unfinished
    for name in names(run):
        (run / "checkpoints" / name / "state.json").unlink()
    before = sorted(p.name for p in run.rglob("*"))
    said = kaizen(given, code=2).stderr
    assert said.count("state.json is missing") == 2
    assert "no whole checkpoint" in said
    assert sorted(p.name for p in run.rglob("*")) == before


@pytest.mark.slow
def test_checkpoints_of_another_run_are_refused_with_what_differs(
    unfinished, tmp_path, moco, three_tasks
):
    run, given = unfinished
    other = tmp_path / "other"
    kaizen(arguments(moco, three_tasks, other, "optim.lr=0.002"))
    for name in names(run):
        (run / "checkpoints" / name).rename(tmp_path / name)
    (other / "checkpoints").rename(tmp_path / "theirs")
    (run / "checkpoints").rmdir()
    (tmp_path / "theirs").rename(run / "checkpoints")
    assert "optim.lr: 0.002 -> 0.001" in kaizen(given, code=2).stderr


@pytest.mark.slow
def test_another_replay_store_is_refused(unfinished):
    run, given = unfinished
    shard = run / "replay" / "task-00" / "replay-000000.tar"
    flip(shard)
    assert str(shard) in kaizen(given, code=3).stderr


# ---- a full disk ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_while_training_exits_4_and_names_the_file(tmp_path, moco, three_tasks):
    """A real one; then, with room again, the same command goes on."""
    disk, run = tmp_path / "disk", tmp_path / "disk" / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    try:
        longer = ("train.max_steps=60", "checkpoint.every_steps=0", "--until", "1")
        given = arguments(moco, three_tasks, run, *longer)
        command = [sys.executable, "-m", "kaizen_dist", *given]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            events = run / "events.jsonl"
            wait_for(lambda: events.exists() and events.read_text().count("\n") >= 3)
            fill(disk / "filling")
            _, said = process.communicate(timeout=240)
        assert process.returncode == 4, said
        (line,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert f"cannot write {run}/" in line
        assert "Traceback" not in said
        (disk / "filling").unlink()
        kaizen(given)
        rows = [json.loads(line)["step"] for line in events.read_text().splitlines()]
        assert rows == list(range(60))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(file: Path) -> None:
    """Leave no room on a file's disk."""
    block = b"x" * 4096
    with file.open("wb", buffering=0) as filling, contextlib.suppress(OSError):
        while True:
            filling.write(block)


def small_files_only() -> None:
    """No file may grow beyond 100 kB: a model fits, a checkpoint does not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.slow
def test_a_full_disk_warns_and_the_run_goes_on(tmp_path, moco, three_tasks, whole):
    run = tmp_path / "run"
    given = arguments(moco, three_tasks, run, "checkpoint.max_failures=99")
    said = kaizen(given, preexec_fn=small_files_only).stderr
    assert len(re.findall(r"WARNING: no checkpoint was saved", said)) >= 6
    assert names(run) == []
    assert outcome(run) == outcome(whole)


def test_too_many_failures_exit_4_with_the_checkpoint_before_intact(unfinished, whole):
    run, given = unfinished
    before = names(run)
    said = kaizen(given, code=4, preexec_fn=small_files_only).stderr
    assert "3 saves in a row have failed" in said
    assert names(run) == before
    kaizen(given)
    assert outcome(run) == outcome(whole)
