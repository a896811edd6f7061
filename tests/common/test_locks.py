"""A folder is for one process at a time, and free again once that has ended, however it ended."""

import errno
import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.common.locks import alone
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.runs import checks as run_folder

HOLDER = """
import sys, time
from pathlib import Path
from kaizen_dist.common.locks import alone
with alone(Path(sys.argv[1]), "busy"):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/folder/lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "folder/lock"], stdout=subprocess.PIPE
    ) as context:
        assert context.stdout is not None
        assert context.stdout.readline() == b"mine\n"
        yield context
        context.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    path = tmp_path / "folder/lock"
    with pytest.raises(UsageError, match="folder is taken"), alone(path, "the folder is taken"):
        pytest.fail("two at once")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with alone(path, "the folder is taken"):
        pass


def test_one_that_is_about_to_end_is_waited_for(holder, tmp_path):
    told = []

    def waiting() -> None:
        told.append("waiting")
        threading.Timer(0.5, holder.kill).start()

    with alone(tmp_path / "folder/lock", "busy", 60, waiting):
        assert holder.poll() is not None or holder.wait(5) is not None
    assert told == ["waiting"]
    with alone(tmp_path / "folder/lock", "busy", 60, lambda: told.append("again")):
        assert told == ["waiting"]


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOLCK, None), (errno.ENOTSUP, None), (errno.EIO, WriteError)]
)
def test_file_systems_without_locks_let_everyone_in(tmp_path, monkeypatch, number, error):
    def flock(file, how):
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "flock", flock)
    if error is None:
        with alone(tmp_path / "lock", "busy"):
            pass
    else:
        with pytest.raises(error, match="lock"), alone(tmp_path / "lock", "busy"):
            pass


def test_a_run_is_trained_by_one_process_and_its_other_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_PATIENCE", 0.3)
    run, said = tmp_path / "run", []
    with (
        run_folder.occupied(run, RankContext(), said.append),
        run_folder.occupied(run, RankContext(rank=1, world_size=2), said.append),
    ):
        assert said == []
        with (
            pytest.raises(UsageError, match=r"another process trains in this folder.*name another"),
            run_folder.occupied(run, RankContext(), said.append),
        ):
            pytest.fail("two at once")
    assert len(said) == 1
    assert str(run) in said[0]


def test_a_run_killed_before_it_began_blocks_nobody(tmp_path: Path, digits):
    from kaizen_dist.config import Config

    with run_folder.occupied(tmp_path / "run", RankContext(), print):
        pass
    run_folder.check_folder(tmp_path / "run", Config(), digits)
