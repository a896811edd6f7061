"""Pipes, devices, links and damage in a run's folder: said of that run, and followed nowhere."""

import io
import os
from pathlib import Path

import pytest
from fuzzing import survive
from rich.text import Text
from run_folders import NOW, began, event, make_run, submitted
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import DataError, KaizenError, WriteError
from kaizen_dist.config import load
from kaizen_dist.launch import logs, status
from kaizen_dist.launch.attempts import AttemptLog
from kaizen_dist.launch.job import SubmittedRun
from kaizen_dist.launch.resources import read
from kaizen_dist.launch.status_table import status_table
from kaizen_dist.sweep.executors import LocalExecutor, SweepJob, last_line

KINDS = ("pipe", "device", "folder", "bytes", "deep", "huge", "dangling", "list")
FILES = ("config.yaml", "events.jsonl", "results.json", "slurm/attempts.jsonl")


def put(path: Path, kind: str) -> None:
    """Something else in place of a file."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.write_bytes(
            {"bytes": b"\xff\0\n", "deep": b"[" * 100_000 + b"\n", "list": b"[]\n"}[kind]
        )


def make_job(root: Path) -> SubmittedRun:
    return SubmittedRun(root=root, stream="/s", tasks=2, chain=False, resources=read(None, {}))


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_one_run_s_damaged_file_is_its_own_row(tmp_path, file, kind):
    make_run(tmp_path / "runs" / "whole", [event(0, 19)], rows=[submitted("7"), began("7")])
    bad = make_run(tmp_path / "runs" / "bad", [event(0, 19, ago=1e6)])
    put(bad / file, kind)
    seen = survive(lambda: status.overview([tmp_path / "runs"], NOW))
    assert isinstance(seen, status.Overview)
    found = {Path(run.run).name: run for run in seen.runs}
    assert found["whole"].state == "running"
    assert found["whole"].why == ""
    assert found["bad"].state == "damaged"
    assert file in found["bad"].why


def test_values_that_no_count_or_time_can_be(tmp_path):
    run = make_run(tmp_path / "run", [event(0, 3), event(0, 4).replace("40.0", "1e999")])
    seen = status.overview([run], NOW).runs[0]
    assert "events.jsonl, 0 lines before its last: malformed" in seen.why
    assert "images_per_second" in seen.why
    (run / "events.jsonl").unlink()
    (run / "config.yaml").write_text("train: {batch_size: 0, epochs: 2}\nreplay: {batch_size: 4}")
    assert "config.yaml: train.batch_size: " in status.overview([run], NOW).runs[0].why


def test_a_search_ends_whatever_links_there_are(tmp_path):
    """Forty links in every folder to all of its siblings: 40 ** 5 ways."""
    places = [tmp_path / f"d{i}" for i in range(40)]
    for place in places:
        place.mkdir()
        for number, other in enumerate(places):
            (place / f"l{number}").symlink_to(other)
    run = make_run(tmp_path / "d7" / "a" / "b" / "c" / "run")
    assert {path.resolve() for path in survive(lambda: list(status.find_runs(tmp_path)))} == {run}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_may_not_be_read_ends_nothing(tmp_path):
    make_run(tmp_path / "runs" / "whole", [event(0, 19)])
    closed = tmp_path / "runs" / "closed"
    closed.mkdir(mode=0)
    states = {Path(run.run).name: run for run in status.overview([tmp_path / "runs"], NOW).runs}
    closed.chmod(0o700)
    assert states["whole"].state == "running"
    assert "Permission denied" in states["closed"].why


def test_names_are_shown_and_not_obeyed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "[bold red]\x1b[31m\nx\udcff"
    run = make_run(Path(name), [event(0, 19)], rows=[submitted("7")])
    out = io.StringIO()
    PlainConsole(file=out, width=300, force_terminal=True).print(
        status_table(status.overview([run], NOW)), style=None
    )
    shown = Text.from_ansi(out.getvalue()).plain
    assert r"[bold red]\x1b[31m\nx\udcff" in shown
    assert "\x1b[31m\n" not in out.getvalue()


# ---- what a job leaves ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_cannot_be_read_is_bad_data(tmp_path, kind):
    put(tmp_path / "slurm" / "job.json", kind)
    assert isinstance(survive(lambda: SubmittedRun.read(tmp_path)), DataError)


def test_a_job_lies_where_it_is_found(tmp_path):
    """Another place written in it, a run of the reader's, is not believed."""
    make_job(tmp_path / "there").write(load(None))
    (tmp_path / "there").rename(tmp_path / "here")
    assert SubmittedRun.read(tmp_path / "here") == make_job(tmp_path / "here")


@pytest.mark.parametrize("name", [".kaizen_dist.tmp", "kaizen_dist", ".", "../logs", ".."])
def test_a_copy_of_the_code_goes_nowhere_else(tmp_path, name):
    """A link of that name in RUN/slurm/code, to a folder that is somebody's."""
    theirs, job = tmp_path / "theirs", make_job(tmp_path / "run")
    for file in ("kaizen_dist/mine.py", "mine.py", "code/kaizen_dist/mine.py"):
        (theirs / file).parent.mkdir(parents=True, exist_ok=True)
        (theirs / file).write_text("mine")
    place = Path(os.path.normpath(job.code / name))
    place.parent.mkdir(parents=True)
    place.symlink_to(theirs)
    before, done, config = sorted(theirs.rglob("*")), None, load(None)
    try:
        job.write(config)
    except WriteError as error:
        done = error
    assert sorted(theirs.rglob("*")) == before
    assert isinstance(done, WriteError) == (name in (".", "../logs", ".."))
    if done is None:
        assert not (job.code / "kaizen_dist").is_symlink()
        assert (job.code / "kaizen_dist" / "launch" / "job.py").is_file()


def test_what_a_killed_copy_left_is_removed(tmp_path):
    job = make_job(tmp_path / "run")
    left = job.code / f".kaizen_dist.{'0' * 16}.tmp"
    left.mkdir(parents=True)
    job.write(load(None))
    assert [path.name for path in job.code.iterdir()] == ["kaizen_dist"]


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling"])
def test_slurm_is_given_no_log_that_leads_elsewhere(tmp_path, kind):
    job = make_job(tmp_path / "run")
    put_in = job.logs / "17_0_log.out"
    put_in.parent.mkdir(parents=True)
    put(put_in, kind)
    with pytest.raises(WriteError, match=r"17_0_log\.out is no file; remove it"):
        job.write(load(None))
    assert not job.code.exists() or list(job.code.iterdir()) == []


def test_rows_are_appended_to_a_file_alone(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("")
    log = AttemptLog(tmp_path)
    log.path.parent.mkdir()
    log.path.symlink_to(theirs)
    with pytest.raises(WriteError):
        log.append(submitted("7"))
    assert theirs.read_text() == ""
    log.path.unlink()
    os.mkfifo(log.path)
    assert isinstance(survive(lambda: log.append(submitted("7"))), WriteError)


@pytest.mark.parametrize("number", ["--me", "../../../etc/passwd", "7 8", "", "７"])
def test_only_a_number_names_a_job(tmp_path, number):
    """It becomes an argument of scancel, and part of the name of a log that is shown."""
    log = AttemptLog(tmp_path)
    log.append(submitted("7"))
    log.append(submitted("8"))
    log.path.write_text(log.path.read_text().replace('"7"', f'"{number}"'))
    with pytest.raises(DataError, match=r"line 1 is not a row of it: .*job"):
        log.rows()


# ---- logs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "dangling"])
def test_no_log_is_shown_but_a_file(tmp_path, kind):
    run = make_run(tmp_path / "run", rows=[submitted("7"), submitted("8")])
    put(run / "slurm" / "logs" / "train-7.log", kind)
    (run / "slurm" / "logs" / "train-8.log").write_text("step 1\n")
    said = survive(lambda: CliRunner().invoke(app, ["logs", str(run)])).stdout
    assert said.splitlines() == [
        "==> attempt 1 of 2: job 7 (no output yet) <==",
        "==> attempt 2 of 2: job 8 <==",
        "step 1",
    ]


def test_a_log_does_not_command_the_terminal(tmp_path):
    run = make_run(tmp_path / "run", rows=[submitted("7")])
    (run / "slurm" / "logs").mkdir()
    (run / "slurm" / "logs" / "train-7.log").write_bytes(b"a\tb\x1b[2J\x1b]0;t\x07 \xc2\x9b \xff\n")
    out = io.BytesIO()
    logs.show(logs.chosen(run, None), out)
    assert out.getvalue().splitlines()[1] == rb"a	b\x1b[2J\x1b]0;t\x07 \x9b \xff"


def test_a_sweep_s_logs_and_locks_are_no_links(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    for link in ("log", "lock"):
        files = {name: tmp_path / f"{link}-{name}" for name in ("log", "lock")}
        files[link].symlink_to(theirs)
        job = SweepJob(load(None), tmp_path / "c", "s", tmp_path / "o", **files)
        with pytest.raises(KaizenError):
            LocalExecutor(1).start(job)
        assert theirs.read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    assert survive(lambda: last_line(tmp_path / "pipe")) == ""
