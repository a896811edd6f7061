"""Limits: real ones lowered in a new process, and hand-made numbers for what cannot be had."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kaizen_dist.common.files import existing
from kaizen_dist.doctor import limits

PROC = Path("/proc")
"""A file system without room."""
LOWERED = """
import json, resource, sys
from dataclasses import asdict
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from kaizen_dist.doctor.limits import limits
print(json.dumps([asdict(f) for f in limits(Path("."), 1, 1) if f.name == "open files"]))
"""
UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "state", "cure"),
    [
        (200, 200, "fail", "limits.conf"),
        (200, 4000, "fail", "ulimit -n 4000"),
        (1000, 4000, "warn", "ulimit -n 4000"),
        (1024, 4000, "ok", ""),
    ],
)
def test_open_files_of_a_process(soft, hard, state, cure):
    done = subprocess.run(
        [sys.executable, "-c", LOWERED, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = json.loads(done.stdout)
    assert found["state"] == state
    assert cure in found["cure"]
    assert found["facts"] == {"soft": soft, "hard": hard}


def test_many_ranks_need_more_open_files():
    """Of 512 ranks, each other takes 8: 512 + 4096 to be well, 256 + 4096 to start at all."""
    states = [limits.open_files(soft, soft, 512).state for soft in (4608, 4607, 4352, 4351)]
    assert states == ["ok", "warn", "warn", "fail"]
    assert limits.open_files(UNLIMITED, UNLIMITED, 10**6).state == "ok"


def test_a_disk_without_room_fails():
    found = limits.disk(PROC)
    assert found.state == "fail"
    assert found.facts["bytes_free"] == 0
    assert "--out" in found.cure


def test_a_folder_to_be_made_is_judged_by_what_is_there(tmp_path):
    assert existing(tmp_path / "runs" / "a") == tmp_path
    assert str(tmp_path) in limits.disk(tmp_path).value


def test_shared_memory():
    assert limits.shared_memory(PROC).state == "fail"
    assert "shm-size" in limits.shared_memory(PROC).cure
    assert limits.shared_memory(Path("/no/such/folder")).state == "fail"


def test_memory_is_shared_by_the_ranks():
    assert limits.memory(8_000_000_000, 4).state == "ok"
    assert limits.memory(7_999_999_999, 4).state == "warn"
    assert limits.memory(None, 4).state == "ok"


def test_locked_memory_matters_with_rdma_alone():
    assert limits.locked_memory(8 << 20, []).state == "ok"
    assert limits.locked_memory(8 << 20, ["mlx5_0"]).state == "fail"
    assert limits.locked_memory(64 << 30, ["mlx5_0"]).state == "warn"
    assert limits.locked_memory(UNLIMITED, ["mlx5_0"]).state == "ok"
