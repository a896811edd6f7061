import errno
import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from kaizen_dist.common.errors import DataError, WriteError
from kaizen_dist.stream.index import INDEX, join_rows, write_index
from kaizen_dist.stream.reader import Folder
from kaizen_dist.stream.shards import ShardSample, Split, write_shard


def make_samples(count: int, first: int = 0) -> list[ShardSample]:
    """Images of several formats, every third unlabelled."""
    samples = []
    for id in range(first, first + count):
        height, width = 4 + id % 5, 6 + id % 3
        noise = np.random.default_rng(id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        extension = ["jpg", "png", "webp", "bmp"][id % 4]
        data = io.BytesIO()
        Image.fromarray(noise).save(data, {"jpg": "JPEG"}.get(extension, extension))
        label = -1 if id % 3 == 0 else id % 7
        samples.append(ShardSample(id, label, data.getvalue(), extension, height, width))
    return samples


def write_two_shards(folder) -> tuple[list[ShardSample], Split]:
    samples = make_samples(30, first=90)
    rows = []
    for number in range(2):
        part = samples[20 * number : 20 * (number + 1)]
        rows.append(write_shard(folder, "train", number, part)[0])
    write_index(folder, "train", join_rows(rows))
    return samples, Split.open(folder, "train")


# ---- what others make of it -------------------------------------------------------------


def test_a_shard_is_byte_for_byte_what_webdataset_writes(tmp_path):
    samples = make_samples(23)
    _, info = write_shard(tmp_path, "train", 0, samples)
    theirs = io.BytesIO()
    options = {"encoder": False, "user": "", "group": "", "mode": 0o444, "mtime": 0}
    with webdataset.TarWriter(theirs, **options) as writer:
        for sample in samples:
            members = {"__key__": f"{sample.id:012d}", sample.extension: sample.data}
            if sample.label >= 0:
                members["cls"] = str(sample.label).encode()
            writer.write(members)
    written = (tmp_path / "train-000000.tar").read_bytes()
    assert written == theirs.getvalue()
    assert (info.name, info.samples, info.bytes) == ("train-000000.tar", 23, len(written))


def test_tarfile_and_webdataset_find_what_the_index_finds(tmp_path):
    samples, split = write_two_shards(tmp_path)
    by_index = [
        (f"{id:012d}", label, split.read(row))
        for row, (id, label) in enumerate(zip(split.ids, split.labels, strict=True))
    ]
    assert [data for _, _, data in by_index] == [sample.data for sample in samples]

    by_tarfile = []
    for path in split.shards:
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar}
        for name in sorted(name for name in files if not name.endswith(".cls")):
            label = int(files.get(f"{name[:12]}.cls", b"-1"))
            by_tarfile.append((name[:12], label, files[name]))
    assert by_tarfile == by_index

    urls = [str(path) for path in split.shards]
    by_webdataset = []
    for found in webdataset.WebDataset(urls, shardshuffle=False):
        image = next(found[e] for e in ("jpg", "png", "webp", "bmp") if e in found)
        by_webdataset.append((found["__key__"], int(found.get("cls", b"-1")), image))
    assert by_webdataset == by_index


# ---- index ------------------------------------------------------------------------------


def rebuild(shards: list[Path]) -> np.ndarray:
    """The index from the tars alone, by other people's tools."""
    rows = []
    for number, path in enumerate(shards):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                key, _, extension = name.partition(".")
                if extension == "cls":
                    continue
                label = tar.extractfile(f"{key}.cls").read() if f"{key}.cls" in members else b"-1"
                width, height = Image.open(tar.extractfile(member)).size
                place = (number, member.offset_data, member.size)
                rows.append((*place, int(label), int(key), height, width))
    return np.array(rows, INDEX)


def test_the_index_can_be_rebuilt_from_the_tars_alone(tmp_path):
    samples, split = write_two_shards(tmp_path)
    assert split.index.dtype == INDEX
    assert np.array_equal(rebuild(split.shards), split.index)
    assert split.ids.tolist() == [sample.id for sample in samples]
    assert split.labels.tolist() == [sample.label for sample in samples]
    assert split.index["height"].tolist() == [sample.height for sample in samples]
    assert split.index["width"].tolist() == [sample.width for sample in samples]


def test_an_empty_part_is_a_split_without_rows(tmp_path):
    write_index(tmp_path, "val", join_rows([]))
    split = Split.open(tmp_path, "val")
    assert (len(split), split.shards, split.labels.tolist()) == (0, [], [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(60),
        b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118,
        b"\x93NUMPY\x01\x00\x46\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }".ljust(69)
        + b"\n",
    ],
)
def test_what_is_no_index_is_named(tmp_path, content):
    (tmp_path / "train.index.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.index\.npy: not an index.*kaizen-dist verify"):
        Split.open(tmp_path, "train")


def test_a_missing_index_and_one_with_absurd_shards(tmp_path):
    with pytest.raises(DataError, match="the index is missing"):
        Split.open(tmp_path, "train")
    rows = np.zeros(3, INDEX)
    rows["shard"] = 2**32 - 1
    write_index(tmp_path, "train", rows)
    with pytest.raises(DataError, match="damaged"):
        Split.open(tmp_path, "train")


# ---- reading ----------------------------------------------------------------------------


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_threads_read_at_once_from_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "most_open", 3)
    samples = make_samples(40)
    rows = [write_shard(tmp_path, "train", n, samples[4 * n : 4 * n + 4])[0] for n in range(10)]
    write_index(tmp_path, "train", join_rows(rows))
    split = Split.open(tmp_path, "train")
    before = open_files()
    order = np.random.default_rng(0).integers(0, 40, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(split.read, order)) == [samples[row].data for row in order]
    assert open_files() <= before + 3


def test_several_rows_are_read_in_the_order_asked_for(tmp_path, monkeypatch):
    samples, split = write_two_shards(tmp_path)
    rows = [25, 3, 3, 29, 0, 20, 19]
    assert split.read_all(rows) == [samples[row].data for row in rows]
    assert split.read_all([]) == []
    # A place on the disk that cannot be read is known by the sample it belongs to.
    broken, pread = int(split.index[29]["offset"]), os.pread

    def failing(descriptor, length, offset):
        if offset == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(DataError, match=r"train-000001\.tar: sample 0*119 .*Input/output error"):
        split.read_all(rows)


def test_a_split_in_a_pickle_is_its_place(tmp_path):
    samples, split = write_two_shards(tmp_path)
    split.read(0)
    pickled = pickle.dumps(split)
    assert len(pickled) < 500 < split.index.nbytes
    assert pickle.loads(pickled).read(29) == samples[29].data


def test_a_sample_read_back_can_be_written_again(tmp_path):
    samples, split = write_two_shards(tmp_path)
    again = [split.sample(row) for row in range(len(split))]
    assert again == samples


def test_a_missing_and_a_short_shard_are_named_with_key_and_cure(tmp_path):
    _, split = write_two_shards(tmp_path)
    os.truncate(split.shards[1], int(split.index["offset"][20]) + 5)
    message = r"train-000001\.tar: sample 000000000110 .*only 5 of its .*kaizen-dist verify"
    with pytest.raises(DataError, match=message):
        split.read(20)
    split.shards[0].unlink()
    message = r"train-000000\.tar: sample 000000000092 .*No such file.*kaizen-dist verify"
    with pytest.raises(DataError, match=message):
        split.read(2)


# ---- writing ----------------------------------------------------------------------------


def test_a_full_disk_is_a_write_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write .*train-000000\.tar: No space left"):
        write_shard(tmp_path, "train", 0, make_samples(3))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_write_error(tmp_path):
    with pytest.raises(WriteError, match="nowhere"):
        write_shard(tmp_path / "nowhere", "train", 0, make_samples(3))


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    write_shard(tmp_path, "train", 0, make_samples(3))
    before = (tmp_path / "train-000000.tar").read_bytes()

    def failing():
        yield from make_samples(2, first=50)
        raise DataError("the source is gone")

    with pytest.raises(DataError):
        write_shard(tmp_path, "train", 0, failing())
    assert [path.name for path in tmp_path.iterdir()] == ["train-000000.tar"]
    assert (tmp_path / "train-000000.tar").read_bytes() == before
