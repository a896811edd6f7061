"""Tars that exist already: which members are a sample, and where its label is."""

import io
import json
import pickle
import tarfile

import pytest

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.images import BadImageError
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.sources import open_source, resolve_spec, source_stamp
from kaizen_dist.stream.verify import verify


@pytest.fixture
def picture(save_image, tmp_path):
    def encoded(seed: int) -> bytes:
        save_image(tmp_path / f"{seed}.jpg", seed)
        return (tmp_path / f"{seed}.jpg").read_bytes()

    return encoded


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def shards(picture, tmp_path):
    """Two tars with five samples, labelled in three ways."""
    for tar, keys in enumerate(([0, 1, 2], [3, 4])):
        members = {}
        for key in keys:
            about = {"label": f"kind {key % 2}", "of": {"id": 10 * (key % 2)}, "list": []}
            members |= {
                f"{key:03d}.cls": f"{9 + key % 2}\n",
                f"{key:03d}.jpg": picture(key),
                f"{key:03d}.json": json.dumps(about),
                f"{key:03d}.txt": "cat" if key % 2 else "dog",
            }
        write_tar(tmp_path / "shards" / f"{tar:03d}.tar", members)
    return tmp_path / "shards"


def opened(spec, tmp_path, skip_bad=False):
    return open_source(f"webdataset:{spec}", tmp_path, progress=False, skip_bad=skip_bad)


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "*.tar", "{000,001}.tar", "00[01].tar"])
def test_patterns(shards, picture, tmp_path, pattern):
    source = opened(shards / pattern, tmp_path)
    names = ["000.tar/000", "000.tar/002", "001.tar/004", "000.tar/001", "001.tar/003"]
    assert [source.name_of(i) for i in range(5)] == [f"{name}.jpg" for name in names]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in range(5)] == [picture(key) for key in (0, 2, 4, 1, 3)]
    assert (source.classes, source.labels.tolist()) == (["9", "10"], [0, 0, 0, 1, 1])
    assert (source.ignored, source.has_val) == (10, False)
    assert source.told == (
        "2 tars, 2 classes, 5 images, 0 of them without a label",
        "ignored: 5 json, 5 txt",
    )


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("cls", ["9", "10"]),
        ("txt", ["cat", "dog"]),
        ("json:label", ["kind 0", "kind 1"]),
        ("json:of.id", ["0", "10"]),
    ],
)
def test_labels(shards, tmp_path, label, classes):
    source = opened(f"{shards}/*.tar:{label}", tmp_path)
    assert source.classes == classes
    by_name = {source.name_of(i)[8:11]: classes[source.labels[i]] for i in range(5)}
    assert by_name["000"] == by_name["002"] == by_name["004"] != by_name["001"] == by_name["003"]


def test_samples_of_all_kinds(picture, tmp_path):
    members = {
        "./a/x.jpg": picture(0),
        "a/x.seg.png": b"a second image of the sample",
        "a/x.cls": "1",
        "b/x.JPG": picture(1),  # another sample than a/x
        "c.mask.png": picture(2),
        "c.cls": " ",
        "d.npy": b"no image",
        ".e.jpg": b"hidden",
        "__MACOSX/a/x.jpg": b"not looked into",
    }
    source = opened(write_tar(tmp_path / "t" / "x.tar", members), tmp_path)
    assert [source.name_of(i) for i in range(len(source))] == [
        *("x.tar/b/x.JPG", "x.tar/c.mask.png", "x.tar/a/x.jpg")
    ]
    assert (source.labels.tolist(), source.classes) == ([-1, -1, 0], ["1"])
    assert source.read(2) == picture(0)
    assert source.told[0].endswith("3 images, 2 of them without a label")


def test_a_stream_of_it_and_of_the_shards_that_came_since(shards, picture, tmp_path):
    spec, out = f"webdataset:{shards}/*.tar:txt", tmp_path / "out"
    stream = prepare(spec, out, tasks=1, val_fraction=0, progress=False)
    assert (stream.classes, stream.manifest.counts.train) == (["cat", "dog"], 5)
    write_tar(shards / "002.tar", {"x.jpg": picture(7), "x.txt": "cow", "y.jpg": picture(8)})
    stream = extend(out, spec, progress=False)
    assert (stream.classes, stream.tasks[1].train) == (["cat", "dog", "cow"], 2)
    assert stream.tasks[1].labelled == 1
    assert verify(out, decode=True).problems == []


def test_a_name_does_not_depend_on_which_tars_there_are(shards, tmp_path):
    names = {opened(shards / p, tmp_path).name_of(0) for p in ("*.tar", "{000..000}.tar")}
    assert names == {"000.tar/000.jpg"}
    assert resolve_spec("webdataset:/a/{0..1}.tar") == "webdataset:/a/{0..1}.tar"
    assert resolve_spec("webdataset:/a.tar:cls") == "webdataset:/a.tar"
    assert resolve_spec("webdataset:/a.tar:json:x.y") == "webdataset:/a.tar:json:x.y"


def test_a_stamp_notices_a_tar_more_and_tars_that_are_gone(shards, picture, tmp_path):
    spec = f"webdataset:{shards}/*.tar"
    before = source_stamp(spec)
    write_tar(shards / "002.tar", {"x.jpg": picture(7), "x.cls": "9"})
    assert source_stamp(spec) not in (None, before)
    assert source_stamp(f"webdataset:{shards}/{{7..8}}.tar") is None


# ---- faults -----------------------------------------------------------------------------


def test_all_faults_are_told_at_once_and_left_out_if_asked(shards, picture, tmp_path):
    members = {
        "a.jpg": picture(5),
        "a.cls": b"\xff",
        "b.cls": "1",
        "c.jpg": picture(6),
        "c.cls": "1" * (1 << 21),
        "d.jpg": picture(7),
        "d.cls": "10",
    }
    write_tar(shards / "002.tar", members)
    pattern = shards / "{000..003}.tar"
    with pytest.raises(DataError) as raised:
        opened(pattern, tmp_path)
    told = str(raised.value)
    assert f"tars that are not there (1): {shards}/003.tar" in told
    assert "samples without an image (1): 002.tar/b" in told
    assert "labels that cannot be read (2): 002.tar/a.cls ('utf-8' codec can't decode" in told
    assert "002.tar/c.cls (larger than 1,048,576 bytes)" in told
    assert told.endswith("mend them, or leave out what is faulty with --skip-bad")
    source = opened(pattern, tmp_path, skip_bad=True)
    assert (len(source), source.labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])


def test_json_labels_that_are_none(shards, tmp_path):
    with pytest.raises(DataError, match=r"\(field lable in KEY\.json\); there are label, list, of"):
        opened(f"{shards}/*.tar:json:lable", tmp_path)
    with pytest.raises(DataError, match=r"\(5\): 000\.tar/000\.json \(its field of is a dict\)"):
        opened(f"{shards}/*.tar:json:of", tmp_path)


def test_a_member_that_is_no_file_does_not_decode(shards, tmp_path):
    with tarfile.open(shards / "001.tar", "a") as tar:
        header = tarfile.TarInfo("005.jpg")
        header.type = tarfile.FIFOTYPE
        tar.addfile(header)
    source = opened(shards / "*.tar", tmp_path)
    assert source.name_of(0) == "001.tar/005.jpg"
    with pytest.raises(BadImageError, match="neither a plain file"):
        source.read(0)
    assert source.read(1)


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ("x{0..1}.tar", DataError, r"no images in it\n  tars that are not there \(2\)"),
        ("x*.tar", DataError, "there is no file that matches"),
        ("{1..0}.tar", UsageError, r"\{1\.\.0\} is neither \{000\.\.012\} nor \{a,b\}"),
        ("{0..999999999999}.tar", UsageError, "names more than 100,000 files"),
        ("{0..9999}{0..9999}.tar", UsageError, "names more than 100,000 files"),
        ("text.tar", DataError, r"text\.tar: not a tar"),
        ("packed.tar", DataError, r"packed\.tar: is compressed.*gunzip it first"),
        ("folder.tar", DataError, r"folder\.tar: cannot be read: not a regular file"),
        ("empty.tar", DataError, "no images in it"),
        ("000.tar:txt:x", DataError, "no images in it"),
    ],
)
def test_a_pattern_that_names_no_samples(shards, tmp_path, pattern, error, words):
    (shards / "text.tar").write_text("hello" * 1000)
    (shards / "folder.tar").mkdir()
    write_tar(shards / "empty.tar", {"a.txt": "x"})
    with tarfile.open(shards / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "0.jpg", "0.jpg")
    with pytest.raises(error, match=words):
        opened(shards / pattern, tmp_path)


@pytest.mark.parametrize("place", ["https://host/a.tar", "s3://bucket/a.tar", "pipe:curl x"])
def test_what_does_not_lie_on_a_disk(tmp_path, place):
    with pytest.raises(UsageError, match="only files on a disk are read; download them first"):
        resolve_spec(f"webdataset:{place}")
