import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
from fuzzing import survive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.index import write_index
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.manifest_entries import Settings, TaskInfo, chain
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.verify import verify


@pytest.fixture
def stream(make_folder, tmp_path):
    root = make_folder({"train/a": 6, "train/b": 5, "test/a": 2, "test/b": 2}, suffix="png")
    options = {"tasks": 2, "shard_size": 4, "labels": 0.5, "progress": False}
    return prepare(f"folder:{root}", tmp_path / "out", **options)


def problems(stream, decode=False, **options) -> list[str]:
    return verify(stream.root, decode=decode, progress=False, **options).problems


def edit(path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def edit_manifest(stream, change) -> None:
    path = stream.root / "stream.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_intact_stream_has_no_problems(stream, workers):
    report = verify(stream.root, decode=True, progress=False, workers=workers)
    assert (report.problems, report.images) == ([], 15)
    assert report.shards == len(list(stream.root.glob("task-*/*.tar")))
    report.raise_if_bad()


def test_a_missing_stream_is_a_problem_and_an_error(tmp_path):
    report = verify(tmp_path / "nowhere", progress=False)
    assert "there is no stream" in report.problems[0]
    with pytest.raises(DataError, match="there is no stream"):
        report.raise_if_bad()


def named(stream, task: int, part: str, row: int) -> str:
    """The key of an image, and its original name as the file beside the index has it."""
    names = (stream.root / f"task-{task:02d}/{part}.names.jsonl").read_text().splitlines()
    return f"{stream.split(task, part).ids[row]:012d} ({json.loads(names[row])})"


def test_a_changed_pixel_is_found_by_the_checksum_and_named_by_decoding(stream):
    split = stream.split(0, "train")
    path, offset = split.shards[0], int(split.index["offset"][2])
    edit(path, offset + 60, b"\0\0\0\0")
    assert problems(stream) == [f"{path}: its sha256 is not the one in stream.json"]
    found = problems(stream, decode=True)
    key = named(stream, 0, "train", 2)
    assert any(f"{path}: sample {key}: does not decode" in problem for problem in found)
    with pytest.raises(DataError, match=f"2 problems(.|\n)*{re.escape(key)}"):
        verify(stream.root, decode=True, progress=False).raise_if_bad()


def test_a_missing_an_empty_and_a_truncated_shard(stream):
    paths = [stream.split(0, "train").shards[0], *stream.split(1, "train").shards[:1]]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    truncated = stream.split(1, "val").shards[0]
    os.truncate(truncated, 700)
    found = problems(stream, decode=True)
    assert f"{paths[0]}: No such file or directory" in found
    assert any(p.startswith(f"{paths[1]}: 0 bytes, should be") for p in found)
    key = named(stream, 1, "train", 0)
    assert f"{paths[1]}: sample {key}: does not decode: the shard is cut short" in found
    assert any(p.startswith(f"{truncated}: 700 bytes, should be") for p in found)
    key = named(stream, 1, "val", 1)
    assert f"{truncated}: sample {key}: does not decode: the shard is cut short" in found


SHA256 = "its sha256 is not the one in stream.json"


@pytest.mark.parametrize("text", [b"x", b"7"])
def test_a_garbled_header_and_a_wrong_label_are_found_by_the_checksum(stream, text):
    split = stream.split(0, "val")
    edit(split.shards[0], int(split.index["offset"][1]) - 512, b"garbage" * 20)
    assert problems(stream) == [f"{split.shards[0]}: {SHA256}"]
    other = stream.split(1, "val")
    edit(other.shards[0], 512, text)
    assert problems(stream) == [f"{shard}: {SHA256}" for shard in (*split.shards, *other.shards)]


KEY = "000000000007"


@pytest.mark.parametrize(
    "members",
    [
        [(f"{KEY}.jpg", b"x"), (f"{KEY}.png", b"x")],
        [(f"{KEY}.cls", b"1")],
        [(f"{KEY}.cls", b"one"), (f"{KEY}.jpg", b"x")],
        [("cat/0.jpg", b"x")],
    ],
)
def test_another_tar_in_a_shards_place_is_named(stream, members):
    path = stream.split(0, "train").shards[0]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    assert any(problem.startswith(f"{path}: ") for problem in problems(stream))
    os.truncate(path, stream.tasks[0].shards[0].bytes)
    assert problems(stream) == [f"{path}: {SHA256}"]


def test_a_damaged_index(stream):
    path = stream.root / "task-00/train.index.npy"
    good = path.read_bytes()
    key = named(stream, 0, "train", 1)
    row = len(good) - 36 * len(stream.split(0, "train"))
    edit(path, row + 36 + 4, b"\xff")  # the second row's offset
    found = problems(stream, decode=True)
    assert f"{path}: {SHA256}" in found
    assert any(f"sample {key}: does not decode" in problem for problem in found)
    edit(path, row + 36 + 4, b"\xff" * 8)  # beyond what a file can have
    found = problems(stream, decode=True)
    assert any(f"sample {key}: does not decode" in problem for problem in found)
    edit(path, row + 36, b"\xff\xff\xff\xff")  # and its shard
    assert any("names shard 4294967295" in problem for problem in problems(stream))
    path.write_bytes(b"")
    assert any(f"{path}: not an index" in problem for problem in problems(stream))
    path.unlink()
    assert any(f"{path}: the index is missing" in problem for problem in problems(stream))


def test_an_index_of_wrong_sizes_is_found_by_decoding(stream):
    path = stream.root / "task-01/val.index.npy"
    rows = np.load(path)
    rows["height"][0] += 1
    np.save(path, rows)
    key = named(stream, 1, "val", 0)
    found = problems(stream, decode=True)
    assert any(f"sample {key}: the index has size 10x12, the image 9x12" in p for p in found)


def rewrite_index(stream, task: int, part: str, change) -> None:
    """Another index, which the manifest knows."""
    folder = stream.root / f"task-{task:02d}"
    rows = np.load(folder / f"{part}.index.npy")
    change(rows)
    digest = write_index(folder, part, rows)
    edit_manifest(
        stream, lambda content: content["tasks"][task]["index_sha256"].update({part: digest})
    )
    sign(stream)


def sign(stream) -> None:
    """Give the manifest the fingerprint of what it says, as somebody might who wants to mislead."""

    def change(content):
        parts = [TaskInfo.model_validate(task) for task in content["tasks"]]
        first = Settings.model_validate(content["additions"][0]["settings"])
        content["fingerprint"] = chain(parts, first)[-1].fingerprint

    edit_manifest(stream, change)


@pytest.mark.parametrize(
    ("part", "column", "value", "words"),
    [
        ("train", "label", 2, "it has label 2, which is none of the classes of task-00"),
        ("val", "label", 1000, "it has label 1000, which is none of the classes"),
        ("val", "label", -7, "it has label -7"),
        ("val", "label", -1, "1 of its images have no label"),
        ("train", "label", -1, "labelled rows where stream.json counts"),
        ("train", "id", 14, "do not have every id once"),
        ("val", "id", -1, "do not have every id once"),
        ("train", "shard", 9, "it names shard 9"),
    ],
)
def test_an_index_that_the_manifest_knows_but_that_is_wrong(stream, part, column, value, words):
    def change(rows):
        row = np.flatnonzero(rows["label"] >= 0)[0] if column == "label" else 1
        rows[column][row] = value

    rewrite_index(stream, 0, part, change)
    assert any(words in problem for problem in problems(stream))
    if column == "label":
        with pytest.raises(DataError, match=rf"task-00.{part}\.index\.npy: "):
            Stream.open(stream.root).check_labels()


def test_the_order_is_that_of_the_seed(stream):
    edit_manifest(stream, lambda content: content["additions"][0]["settings"].update(seed=6))
    assert "fingerprint is not that of the tasks" in problems(stream)[0]
    sign(stream)
    assert sum("its order is not that of seed 6" in problem for problem in problems(stream)) == 2


@pytest.mark.parametrize("name", ["stream.json", "train-000000.tar", "val.index.npy"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "endless"])
def test_what_is_no_file_is_named_and_waited_for_by_nobody(stream, name, kind):
    path = next(stream.root.rglob(name))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "nothing":
        path.symlink_to("nowhere")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a hole, of which reading would never see the end
    found = survive(lambda: problems(stream, decode=True))
    assert any(str(path) in problem for problem in found)
    with pytest.raises(DataError, match=re.escape(str(path))):
        Stream.open(stream.root).check_labels()


def test_a_wrong_extension_and_a_lost_row(stream):
    shard = stream.split(0, "val").shards[0]
    shard.write_bytes(shard.read_bytes().replace(b".png", b".jpg"))
    path = stream.root / "task-00/val.index.npy"
    np.save(path, np.load(path)[:1])
    found = problems(stream, decode=True)
    assert f"{shard}: {SHA256}" in found
    assert f"{path}: {SHA256}" in found
    assert f"{path}: 1 rows for 2 images" in found


@given(data=st.data())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_goes_unnoticed_or_escapes_as_an_exception(stream, data):
    """Any file cut short, overwritten or with something put in: problems, never a crash."""
    files = sorted(path for path in stream.root.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(max_size=40))
    damaged = data.draw(
        st.sampled_from(
            [
                good[:position],
                good[:position] + junk + good[position + len(junk) :],
                good[:position] + junk + good[position:],
            ]
        )
    )
    try:
        path.write_bytes(damaged)
        found = problems(stream, decode=True)
    finally:
        path.write_bytes(good)
    if path.name != "stream.json" and damaged != good:
        assert found
        assert any(str(path) in problem for problem in found)


def test_a_copied_stream_is_as_good(stream, tmp_path):
    shutil.copytree(stream.root, tmp_path / "copy")
    assert verify(tmp_path / "copy", decode=True, progress=False).problems == []


def test_what_is_larger_than_any_image_is_neither_read_nor_whole(stream, monkeypatch):
    split = stream.split(0, "train")
    length = int(split.index["length"][0])
    for module in ("shards.MOST_BYTES_OF_IMAGE", "verify.MOST_BYTES"):
        monkeypatch.setattr(f"kaizen_dist.stream.{module}", length - 1)
    words = f"sample {split.ids[0]:012d}.* no image has {length} bytes"
    assert any(re.search(words, problem) for problem in problems(stream))
    with pytest.raises(DataError, match=words):
        split.read(0)
