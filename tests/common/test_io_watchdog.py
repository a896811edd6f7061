"""A read that does not return is told of, with rank and file, and waited for."""

import os
import subprocess
import sys
import threading
import time

import pytest

from kaizen_dist.common import io_watchdog
from kaizen_dist.common.io_watchdog import waiting_for

STALLED = """
import os, sys, threading
from pathlib import Path
from kaizen_dist.common.io_watchdog import report_stalls
from kaizen_dist.stream.reader import Folder, StoredFile

def dead(descriptor, length, offset):
    # Blocks in the kernel, as a read from a dead mount does.
    return os.read(blocked, length) and pread(descriptor, length, offset)

blocked, writer = os.pipe()
file = StoredFile(Folder(Path(sys.argv[1])), "shard.tar")
pread, os.pread = os.pread, dead
report_stalls(0.2)
threading.Timer(1.5, os.write, (writer, b"x")).start()
print(file.read(0, 5))
threading.Event().wait(0.4)
"""


@pytest.mark.parametrize("rank", [None, "3"])
def test_a_read_that_does_not_return_is_told_of_again_and_again(tmp_path, rank):
    (tmp_path / "shard.tar").write_bytes(b"hello")
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    environment |= {"RANK": rank} if rank else {}
    done = subprocess.run(
        [sys.executable, "-c", STALLED, tmp_path],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    assert done.stdout == "b'hello'\n"
    lines = done.stderr.splitlines()
    told = f"{f'rank {rank}: ' if rank else ''}waiting for {tmp_path}/shard.tar for "
    assert len([line for line in lines if line.startswith(told)]) >= 2
    assert f"{tmp_path}/shard.tar answers again" in lines[-1]


@pytest.fixture
def watcher(capsys):
    watching = io_watchdog._Watcher()
    watching.limit = 10.0

    def look() -> list[str]:
        watching._look()
        return capsys.readouterr().err.splitlines()

    return look


def test_each_file_is_told_of_once_a_period(watcher, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with waiting_for("a.tar"), waiting_for("a.tar"), waiting_for("b.tar") as second:
        assert watcher() == []
        clock[0] = 9.0
        second.progressed()
        clock[0] = 10.0
        assert [line.split()[2] for line in watcher()] == ["a.tar"]
        assert watcher() == []
        clock[0] = 19.0
        assert [line.split()[2] for line in watcher()] == ["b.tar"]
        clock[0] = 20.0
        assert [line.split()[2] for line in watcher()] == ["a.tar"]
    assert sorted(line.split()[0] for line in watcher()) == ["a.tar", "b.tar"]
    assert watcher() == []


def test_an_error_ends_the_wait_too(watcher):
    with pytest.raises(OSError, match="gone"), waiting_for("c.tar"):
        raise OSError("gone")
    assert io_watchdog._waits == set()


def test_many_threads_wait_and_none_stays(watcher):
    def work() -> None:
        for number in range(300):
            with waiting_for(f"{number}.tar"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        assert watcher() == []
    for thread in threads:
        thread.join()
    assert io_watchdog._waits == set()
