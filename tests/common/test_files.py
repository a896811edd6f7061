"""Files whole or not there, whatever lies in their place; and nothing read that is no file."""

import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from kaizen_dist.common import files
from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.common.locks import alone


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file that is none of ours."""
    path = tmp_path / "outside"
    path.write_bytes(b"theirs")
    return path


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path, outside):
    target = tmp_path / "results.json"
    target.symlink_to(outside)
    files.atomic_write(target, b"ours")
    assert outside.read_bytes() == b"theirs"
    assert target.read_bytes() == b"ours"
    assert not target.is_symlink()


@pytest.mark.parametrize("there", ["nothing", "file", "link", "link to nothing", "folder"])
def test_a_link_takes_the_place_of_a_file_or_a_link(tmp_path, outside, there):
    path = tmp_path / "out"
    if there == "file":
        path.write_bytes(b"ours")
    elif there == "folder":
        path.mkdir()
    elif there != "nothing":
        path.symlink_to(outside if there == "link" else "gone")
    before = {p.name for p in tmp_path.iterdir()} | {"out"}
    if there == "folder":
        with pytest.raises(WriteError, match=r"cannot write .*out: Is a directory"):
            files.atomic_link(path, outside)
    else:
        files.atomic_link(path, outside)
        assert path.readlink() == outside
    assert outside.read_bytes() == b"theirs"
    assert {p.name for p in tmp_path.iterdir()} == before


def test_no_link_laid_in_the_place_of_a_temporary_file_is_followed(tmp_path, outside):
    # The names that earlier versions wrote to first.
    for name in (f".x.{os.getpid()}.tmp", ".x.tmp"):
        (tmp_path / name).symlink_to(outside)
    files.atomic_write(tmp_path / "x", b"ours")
    assert outside.read_bytes() == b"theirs"


def test_a_lock_follows_no_link_and_empties_nothing(tmp_path, outside):
    (tmp_path / ".lock").symlink_to(outside)
    with pytest.raises(WriteError), alone(tmp_path / ".lock", "busy"):
        pytest.fail("followed")
    with alone(outside, "busy"):
        assert outside.read_bytes() == b"theirs"


def test_a_lock_on_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises((WriteError, UsageError)), alone(tmp_path / ".lock", "busy"):
        pytest.fail("a pipe is no lock")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()[:7]  # up to its times
    with pytest.raises(WriteError, match=r"out: it is a (folder|device)"):
        files.atomic_write(path, b"ours")
    assert path.lstat()[:7] == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("read", [files.read_bytes, files.file_sha256, files.read_json])
def test_pipes_devices_and_folders_are_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "endless", tmp_path):
        with pytest.raises(OSError, match=r"not a regular file|[Dd]irectory"):
            read(path)


def test_reading_takes_as_much_memory_as_the_file_has(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    tracemalloc.start()
    assert files.read_bytes(tmp_path / "small", 1 << 29) == b"small"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    # These have no size that anybody could know beforehand.
    assert len(files.read_bytes(Path("/proc/self/status"))) > 100


def test_reading_has_a_limit_and_can_refuse_links(tmp_path, outside):
    assert files.read_bytes(outside, 6) == b"theirs"
    with pytest.raises(OSError, match="larger than 5 bytes"):
        files.read_bytes(outside, 5)
    (tmp_path / "link").symlink_to(outside)
    assert files.read_bytes(tmp_path / "link") == b"theirs"
    with pytest.raises(OSError, match="symbolic links"):
        files.read_bytes(tmp_path / "link", follow=False)


@pytest.mark.parametrize(
    "text", ["", "{", '"\\ud800"', '{"a": ["\\udc00"]}', "[" * 100_000, "\ufeff{}", "1" * 5000]
)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        files.parse_json(text)


def test_characters_written_as_pairs_are_read():
    assert files.parse_json(json.dumps({"name": "😀 é"})) == {"name": "😀 é"}


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with files.atomic_file(tmp_path / "x") as file:
            file.write(b"half")
            begun.set()
            go_on.wait()

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()
    (left,) = tmp_path.iterdir()
    kept = [tmp_path / name for name in (".hidden", "a.tmp", ".a.tmp", ".x.123.tmp.txt")]
    for path in kept:
        path.touch()
    assert files.is_leftover(left)
    assert files.is_leftover(tmp_path / ".x.4711.tmp")  # as earlier versions named them
    copy = tmp_path / ".y.0123456789abcdef.tmp"
    copy.write_bytes(left.read_bytes())
    go_on.set()
    thread.join()
    files.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "x", *kept])
