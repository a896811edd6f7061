"""What is known to be wrong before anything is queued."""

import os
import subprocess
from pathlib import Path

import pytest

from kaizen_dist.common.errors import WriteError
from kaizen_dist.launch import checks
from kaizen_dist.launch.checks import check_room, disk_problem, file_system, megabytes
from kaizen_dist.launch.resources import read
from kaizen_dist.launch.slurm import Node, Partition

GPU_NODES = [
    Node(f"g{i}", "IDLE", cpus=64, memory_mb=512_000, gpus=4, hostname=f"g{i}", address=f"g{i}")
    for i in range(4)
]
PARTITION = Partition("gpu", True, True, max_minutes=480, nodes=("g0", "g1", "g2", "g3"))


def misfits(**flags) -> list[str]:
    return list(checks._misfits(read(None, flags), PARTITION, GPU_NODES))


def test_what_fits_has_no_problem():
    most = {"nodes": 4, "gpus_per_node": 4, "cpus_per_task": 16, "mem": "500G", "time": "8:00:00"}
    assert misfits(**most) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"nodes": 5}, "nodes: 5 are more than the 4"),
        ({"nodes": 4, "exclude": ("g1",)}, "nodes: 4 are more than the 3"),
        ({"gpus_per_node": 8}, "gpus_per_node: 8 are more than the 4 of a node"),
        ({"gpus_per_node": 4, "cpus_per_task": 17}, "4 ranks a node with 17 each"),
        ({"mem": "1T"}, "mem: 1T is more than the 512000 MB"),
        ({"time": "8:01:00"}, "time: 8:01:00 is longer than the 480 minutes"),
        ({"time": "3"}, "of 3 nothing is left to train in, 120 s before"),
    ],
)
def test_each_misfit_is_said_by_its_field(flags, said):
    found = misfits(**({"time": "60"} | flags))
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("mem", "expected"), [("64G", 65536), ("500", 500), ("500M", 500), ("1T", 1048576), ("0", 0)]
)
def test_memory_as_slurm_writes_it(mem, expected):
    assert megabytes(mem) == expected


def test_a_disk_of_this_machine_is_none_for_other_nodes(tmp_path):
    asked = read(None, {})
    if not checks._LOCAL_DISK.fullmatch(file_system(tmp_path)):
        pytest.skip("the tests' folder lies on a shared file system")
    said = disk_problem(tmp_path / "new" / "run", asked, GPU_NODES)
    assert said is not None
    assert "which g0 does not see" in said
    here = [Node("n1", "IDLE", 1, 1, 0, hostname=os.uname().nodename, address="")]
    assert disk_problem(tmp_path, asked, here) is None
    assert disk_problem(tmp_path, read(None, {"shared_disk": True}), GPU_NODES) is None


def test_the_file_system_is_that_of_findmnt(tmp_path):
    for place in (tmp_path, Path("/proc"), Path("/dev/shm")):
        said = subprocess.run(
            ["findmnt", "-n", "-o", "FSTYPE", "-T", place], capture_output=True, text=True
        )
        if said.returncode:
            pytest.skip("findmnt is missing, or does not know this place")
        assert file_system(place) == said.stdout.split()[-1]


def test_what_others_mount_is_in_nobodys_way():
    """Names that are no UTF-8, with spaces, a carriage return, a dash, or cut off."""
    table = (
        b"1 0 0:1 / / rw - ext4 /dev/sda rw\n"
        b"2 1 0:2 / /mnt/\xff\r\x1e rw - fuse.x x rw\n"
        b"3 1 0:3 / /mnt/a\\040-\\040b\\134 rw,x shared:1 - nfs4 srv:/x rw\n"
        + "4 1 0:4 / /mnt/é rw - lustre x rw\n5 1 0:5\n".encode()
    )
    assert list(checks.mounts(table)) == [
        (Path("/"), "ext4"),
        (Path("/mnt/\udcff\r\x1e"), "fuse.x"),
        (Path("/mnt/a - b\\"), "nfs4"),
        (Path("/mnt/é"), "lustre"),
    ]


def test_too_little_room_is_said_with_both_sizes(tmp_path):
    with pytest.raises(WriteError, match=r"take 1000000000\.0 GB"):
        check_room(tmp_path / "run", 10**18)
    check_room(tmp_path / "run", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_quota_shows_on_the_login_node(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(WriteError, match="cannot write 16 MB into"):
            check_room(tmp_path, 1)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(
    ("root", "stream", "said"),
    [
        ("/r/a\nb", "/s", "--out /r/a\\nb: a line break"),
        ("/r/a", "/s\n# x", "--stream /s\\n# x: a line break"),
        ("/r/\udcff", "/s", "--out /r/\\udcff: "),
        ("/r/50%", "/s", "Slurm takes % in the name of a log"),
        ("/r/a\\b", "/s", "Slurm takes \\ in the name of a log"),
        ("/r/a,b", "/s", "--out /r/a,b: a folder with , cannot be bound"),
        ("/r/a", "/s:1", "--stream /s:1: a folder with : cannot be bound"),
    ],
)
def test_places_that_a_batch_script_cannot_hold(root, stream, said):
    (found,) = checks.unfit_places(Path(root), stream, container=True)
    assert said in found


def test_places_that_it_can():
    for root, stream in (("/r/it's a b, c:d", "/s $x"), ("/é✓", "s3://bucket/s")):
        assert list(checks.unfit_places(Path(root), stream, container=False)) == []
    assert list(checks.unfit_places(Path("/r"), "s3://bucket/s", container=True)) == []
