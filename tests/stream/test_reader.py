"""Files that change under their reader: named, or read on when their content is the same."""

import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import file_sha256
from kaizen_dist.stream import reader
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.reader import Facts, Folder, StoredFile


@pytest.fixture(autouse=True)
def look_up_at_once(monkeypatch):
    monkeypatch.setattr(reader, "RECHECK_SECONDS", 0.0)


@pytest.fixture
def stream(make_folder, tmp_path) -> Stream:
    source = make_folder({"train/cat": 12, "train/dog": 12})
    out = tmp_path / "stream"
    return prepare(f"folder:{source}", out, tasks=1, shard_size=5, progress=False)


def rewrite(path: Path, content: bytes) -> None:
    """Other content in the same file, at another time."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def replace(path: Path, content: bytes) -> None:
    """Another file under the same name."""
    beside = path.with_name("beside")
    beside.write_bytes(content)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(beside, ns=(later, later))
    beside.replace(path)


@pytest.mark.parametrize("change", [rewrite, replace])
@pytest.mark.parametrize("reopened", [False, True])
def test_other_content_of_the_same_size_is_named(stream, change, reopened, monkeypatch):
    split = stream.split(0, "train")
    split.read(0)
    path = split.shards[0]
    if reopened:
        monkeypatch.setattr(Folder, "most_open", 1)
        split.read(10)
    change(path, path.read_bytes()[::-1])
    with pytest.raises(DataError, match=rf"{path}: has changed since.*kaizen-dist verify"):
        split.read(1)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_the_same_content_put_back_is_read_on(stream, change):
    split = stream.split(0, "train")
    before = [split.read(row) for row in range(len(split))]
    for path in split.shards:
        change(path, path.read_bytes())
    assert [split.read(row) for row in range(len(split))] == before


def test_a_change_between_two_openings_of_the_split_is_named(stream):
    stream.split(0, "train").read(0)
    path = stream.split(0, "train").shards[0]
    replace(path, path.read_bytes()[::-1])
    with pytest.raises(DataError, match="has changed since"):
        stream.split(0, "train").read(0)


def test_a_shard_that_shrinks_or_grows_is_named_with_both_sizes(stream):
    split = stream.split(0, "train")
    for path, size in ((split.shards[0], 700), (split.shards[1], 10**6)):
        split.read(0 if path == split.shards[0] else 5)
        was = path.stat().st_size
        os.truncate(path, size)
        with pytest.raises(DataError, match=rf"{path}: {size:,} bytes, but .* says {was:,}"):
            split.read(0 if path == split.shards[0] else 5)


def test_without_a_manifest_any_change_is_named(stream):
    split = reader.Folder(stream.root / "task-00")
    file = StoredFile(split, "train-000000.tar")
    file.read(0, 100)
    rewrite(stream.root / "task-00/train-000000.tar", b"short")
    with pytest.raises(DataError, match=r"has changed since.* \([\d,]+ bytes before, 5 now\)"):
        file.read(0, 100)


def test_a_shard_that_vanishes_is_named_with_the_sample(stream):
    split = stream.split(0, "train")
    split.read(0)
    split.shards[0].unlink()
    with pytest.raises(DataError, match=rf"{split.shards[0]}: sample \d+ .*No such file"):
        split.read(0)


def test_a_name_is_looked_up_only_now_and_then(stream, monkeypatch):
    monkeypatch.setattr(reader, "RECHECK_SECONDS", 1000.0)
    split = stream.split(0, "train")
    before = split.read(0)
    split.shards[0].unlink()
    assert split.read(0) == before


def test_an_index_that_shrinks_changes_or_vanishes_is_named_when_it_is_opened_again(stream):
    """An open split has its rows in memory and reads on."""
    split = stream.split(0, "train")
    path = stream.root / "task-00/train.index.npy"
    whole, before = path.read_bytes(), split.read(3)
    os.truncate(path, 300)
    with pytest.raises(DataError, match=rf"{path}: has changed since"):
        stream.split(0, "train")
    path.write_bytes(whole)
    assert stream.split(0, "train").read(3) == before
    rewrite(path, whole[:-8] + bytes(8))
    with pytest.raises(DataError, match=rf"{path}: has changed since"):
        stream.split(0, "train")
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: the index is missing"):
        stream.split(0, "train")
    assert split.read(3) == before
    assert len(split.labels) == len(split)


def test_a_pipe_in_a_files_place_is_no_file_and_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        StoredFile(Folder(tmp_path), "pipe").read(0, 1)


def test_what_an_index_gone_wrong_asks_for_makes_no_buffer(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    file = StoredFile(Folder(tmp_path), "file")
    assert file.read(7, 2**62) == b"789"
    assert file.read(2**64 - 1, 2**32 - 1) == b""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_read_right_while_the_file_is_replaced_by_its_copies(tmp_path):
    content = np.random.default_rng(0).bytes(200_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    file = StoredFile(Folder(tmp_path), "file", Facts(len(content), file_sha256(path)))
    right, wrong, stop = [0] * 4, [], threading.Event()

    def read(seed: int) -> None:
        places = np.random.default_rng(seed)
        while not stop.is_set():
            offset = int(places.integers(0, 190_000))
            try:
                assert file.read(offset, 1000) == content[offset : offset + 1000]
            except BaseException as error:
                wrong.append(error)
            right[seed] += 1

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        replace(path, content)
        reads = list(right)
        wait_for(lambda reads=reads: all(a > b for a, b in zip(right, reads, strict=True)))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_in_a_pickle_is_its_place(tmp_path):
    assert pickle.loads(pickle.dumps(Folder(tmp_path))).path == tmp_path
