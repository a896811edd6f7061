import json
import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaizen_dist.errors import DataError
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


def test_a_changed_pixel_is_found_by_the_checksum_and_named_by_decoding(stream):
    split = stream.split(0, "train")
    path, offset = split.shards[0], int(split.index["offset"][2])
    edit(path, offset + 60, b"\0\0\0\0")
    assert problems(stream) == [f"{path}: its sha256 is not the one in stream.json"]
    found = problems(stream, decode=True)
    key = f"{split.ids[2]:012d}"
    assert any(f"{path}: sample {key}: does not decode" in problem for problem in found)
    with pytest.raises(DataError, match=f"2 problems(.|\n)*{key}"):
        verify(stream.root, decode=True, progress=False).raise_if_bad()


def test_a_missing_an_empty_and_a_truncated_shard(stream):
    paths = [stream.split(0, "train").shards[0], *stream.split(1, "train").shards[:1]]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    truncated = stream.split(1, "val").shards[0]
    os.truncate(truncated, 700)
    found = problems(stream, decode=True)
    assert f"{paths[0]}: No such file or directory" in found
    assert any(p.startswith(f"{paths[1]}: cut short at byte 0") for p in found)
    assert any(p.startswith(f"{truncated}: 700 bytes, should be") for p in found)
    assert any(p.startswith(f"{truncated}: cut short at byte 1024") for p in found)
    key = f"{stream.split(1, 'val').ids[1]:012d}"
    assert f"{truncated}: sample {key} is not in the tar" in found


def test_a_garbled_header_is_named_with_what_lies_behind_it(stream):
    split = stream.split(0, "val")
    header = int(split.index["offset"][1]) - 512
    edit(split.shards[0], header, b"garbage" * 20)
    found = problems(stream)
    assert any(f"damaged (bad checksum) at byte {header}" in problem for problem in found)
    assert f"{split.shards[0]}: sample {split.ids[1]:012d} is not in the tar" in found


@pytest.mark.parametrize(
    ("text", "words"), [(b"x", "has the label b'x'"), (b"7", "label ., not 7")]
)
def test_a_wrong_label_text_is_named_by_its_key(stream, text, words):
    split = stream.split(0, "val")
    edit(split.shards[0], 512, text)
    found = "\n".join(problems(stream))
    assert re.search(f"sample {split.ids[0]:012d}.*{words}", found)


def test_a_damaged_index(stream):
    path = stream.root / "task-00/train.index.npy"
    good = path.read_bytes()
    key = f"{stream.split(0, 'train').ids[1]:012d}"
    row = len(good) - 36 * len(stream.split(0, "train"))
    edit(path, row + 36 + 4, b"\xff")  # the second row's offset
    found = problems(stream)
    assert f"{path}: its sha256 is not the one in stream.json" in found
    assert any(f"sample {key}: the index has offset" in problem for problem in found)
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
    key = f"{rows['id'][0]:012d}"
    found = problems(stream, decode=True)
    assert any(f"sample {key}: the index has size 10x12, the image 9x12" in p for p in found)


def test_numbers_of_the_manifest_that_do_not_agree(stream):
    edit_manifest(stream, lambda content: content["counts"].update(train=12))
    edit_manifest(stream, lambda content: content["tasks"][0].update(val=1, classes=[0, 9]))
    edit_manifest(stream, lambda content: content["tasks"][1].update(labelled=0))
    bad = {"id": 1, "name": "x", "reason": "y"}
    edit_manifest(stream, lambda content: content["bad"].append(bad))
    found = "\n".join(problems(stream))
    for words in (
        "counts.train is 12, but the tasks have 11",
        "task-00: 1 val images, but 2 in shards",
        "task-00: names a class that is not there",
        "labelled rows where stream.json counts 0",
        "counts.bad is 0, but 1 are listed",
    ):
        assert words in found


def test_a_wrong_extension_and_a_lost_row(stream):
    split = stream.split(0, "val")
    shard = split.shards[0]
    renamed = shard.read_bytes().replace(b".png", b".jpg")
    # The header's checksum has to fit again: p, n, g against j, p, g.
    difference = sum(b".jpg") - sum(b".png")
    content = bytearray(renamed)
    for offset in (int(o) - 512 for o in split.index["offset"]):
        checksum = int(content[offset + 148 : offset + 154], 8) + difference
        content[offset + 148 : offset + 154] = f"{checksum:06o}".encode()
    shard.write_bytes(content)
    first, second = (f"{id:012d}" for id in split.ids)
    path = stream.root / "task-00/val.index.npy"
    np.save(path, np.load(path)[:1])
    found = problems(stream, decode=True)
    assert f"{shard}: sample {first}: named jpg, but it is png" in found
    assert f"{shard}: sample {second} is not in the index" in found


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
