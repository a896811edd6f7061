"""Images in Parquet, as Hugging Face's library writes them, and its data sets."""

import json
import pickle
import sys

import pytest

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.sources import open_source, source_stamp
from kaizen_dist.stream.verify import verify

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

KINDS = ["cat", "dog", "cow"]


@pytest.fixture
def picture(save_image, tmp_path):
    def encoded(seed: int) -> bytes:
        save_image(tmp_path / f"{seed}.jpg", seed)
        return (tmp_path / f"{seed}.jpg").read_bytes()

    return encoded


@pytest.fixture
def write(picture, tmp_path):
    """write("train-0.parquet", [(seed, label), ...]); a seed of None: no image."""

    def written(name, rows, names=KINDS, column="label", **more):
        images = [
            {"bytes": None if seed is None else picture(seed), "path": f"{seed}.jpg"}
            for seed, _ in rows
        ]
        table = pa.table({"image": images, column: [label for _, label in rows], **more})
        if names is not None:
            features = {
                "image": {"_type": "Image"},
                column: {"names": names, "_type": "ClassLabel"},
            }
            noted = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": noted})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / name)
        return tmp_path / "data"

    return written


def opened(spec, tmp_path, skip_bad=False):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return open_source(f"parquet:{spec}", work, progress=False, skip_bad=skip_bad)


def test_parts_names_and_labels(write, picture, tmp_path):
    write("train-00000-of-00002.parquet", [(0, 1), (1, 0), (2, None)])
    write("train-00001-of-00002.parquet", [(3, 1)])
    write("validation-00000-of-00001.parquet", [(4, 1), (5, 0)])
    data = write("test-00000-of-00001.parquet", [(6, -1)])
    source = opened(f"{data}/*.parquet", tmp_path)
    train, val = "train-0000{}-of-00002.parquet:{}", "validation-00000-of-00001.parquet:{}"
    assert [source.name_of(i) for i in range(len(source))] == [
        f"{train.format(0, 2)}:2.jpg",
        f"{train.format(0, 1)}:1.jpg",
        f"{train.format(0, 0)}:0.jpg",
        f"{train.format(1, 0)}:3.jpg",
        f"{val.format(1)}:5.jpg",
        f"{val.format(0)}:4.jpg",
    ]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in range(6)] == [picture(seed) for seed in (2, 1, 0, 3, 5, 4)]
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [-1, 0, 1, 1, 0, 1])
    assert source.is_val.tolist() == [False] * 4 + [True] * 2
    assert source.told == (
        "3 files, 2 classes, 6 images, 1 of them without a label, 2 for validation",
        "test-00000-of-00001.parquet is left out",
    )


def test_plain_columns_without_what_hugging_face_notes(picture, tmp_path):
    columns = {"img": [picture(0), picture(1), picture(2)], "label": ["b", None, "a"], "n": [1] * 3}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet", tmp_path)
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [-1, 0, 1])
    assert source.name_of(1) == "x.parquet:2"
    pq.write_table(pa.table({"image": columns["img"]}), tmp_path / "y.parquet")
    assert opened(tmp_path / "y.parquet", tmp_path).labels.tolist() == [-1] * 3


def test_the_column_of_the_labels_may_be_given(write, tmp_path):
    data = write("x.parquet", [(0, 1), (1, 2)], column="fine", coarse=[7, 8])
    assert opened(f"{data}/x.parquet:fine", tmp_path).classes == ["dog", "cow"]
    assert opened(f"{data}/x.parquet:coarse", tmp_path).classes == ["7", "8"]
    assert opened(f"{data}/x.parquet", tmp_path).classes == ["dog", "cow"]  # the one with names
    with pytest.raises(DataError, match="has no column lable for labels; there are image, fine"):
        opened(f"{data}/x.parquet:lable", tmp_path)


def test_a_stream_of_it_continues_without_reading_all_again(write, tmp_path, monkeypatch):
    spec, out = f"parquet:{write('train.parquet', [(0, 0), (1, 1)])}/*.parquet", tmp_path / "out"
    monkeypatch.setattr("kaizen_dist.stream.add_tasks._commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(spec, out, tasks=1, val_fraction=0, progress=False)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("kaizen_dist.stream.sources.parquet._File.images", lambda *_: 1 / 0)
        prepare(spec, out, tasks=1, val_fraction=0, progress=False)
        assert len(prepare(spec, out, tasks=1, val_fraction=0, progress=False)) == 1
    write("train-2.parquet", [(2, 2), (3, 0)])
    with pytest.raises(UsageError, match=r"has changed since .* `kaizen-dist extend"):
        prepare(spec, out, tasks=1, val_fraction=0, progress=False)
    stream = extend(out, spec, progress=False)
    assert (stream.classes, stream.tasks[1].train) == (["cat", "dog", "cow"], 2)
    assert verify(out, decode=True).problems == []


def test_a_stamp_is_of_what_the_files_hold(write, tmp_path):
    data = write("x.parquet", [(0, 0), (1, 1)])
    before = source_stamp(f"parquet:{data}/*.parquet")
    assert source_stamp(f"parquet:{data}/*.parquet") == before
    write("x.parquet", [(0, 1), (1, 0)])
    assert source_stamp(f"parquet:{data}/*.parquet") not in (None, before)
    assert source_stamp(f"parquet:{tmp_path}/gone/*.parquet") is None


# ---- faults -----------------------------------------------------------------------------


def test_all_faulty_rows_are_told_and_left_out_if_asked(write, tmp_path):
    write("train.parquet", [(0, 0), (None, 1), (1, 0)])
    data = write("test.parquet", [(2, -1), (3, 2), (4, 0)])
    with pytest.raises(DataError) as raised:
        opened(f"{data}/*.parquet", tmp_path)
    assert str(raised.value).split("\n  ")[1:4] == [
        "rows without the bytes of an image (1): train.parquet:1:None.jpg",
        "validation images without a label (1): test.parquet:0:2.jpg",
        "classes that only validation images have (1): cow (test.parquet:1:3.jpg)",
    ]
    source = opened(f"{data}/*.parquet", tmp_path, skip_bad=True)
    assert [source.name_of(i)[-5:] for i in range(len(source))] == ["0.jpg", "1.jpg", "4.jpg"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [1]}, "0 columns of images, one is due: .*; its columns are label"),
        ({"image": ["a.jpg"]}, "0 columns of images"),
        ({"a": [b"x"], "b": [b"x"]}, "2 columns of images, one is due"),
        ({"image": [{"path": "x"}]}, "0 columns of images"),
        ({"image": pa.array([], pa.binary())}, "no rows in it"),
        ({"image": pa.array([None], pa.binary())}, r"no images in it\n  rows without the bytes"),
    ],
)
def test_columns_that_are_no_images(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "x.parquet", tmp_path)


def test_files_that_do_not_fit_together(write, tmp_path):
    data = write("a.parquet", [(0, 0)])
    write("b.parquet", [(0, 0)], column="other")
    with pytest.raises(DataError, match=r"b\.parquet: has no column label, as others have"):
        opened(f"{data}/*.parquet", tmp_path)
    write("b.parquet", [(0, 3)])
    with pytest.raises(DataError, match="column label: labels are not numbers of its 3 classes"):
        opened(f"{data}/*.parquet", tmp_path)
    two = {"image": [b"x"], "fine": [0], "coarse": [0]}
    label = {"names": KINDS, "_type": "ClassLabel"}
    noted = json.dumps({"info": {"features": {"fine": label, "coarse": label}}})
    pq.write_table(
        pa.table(two).replace_schema_metadata({"huggingface": noted}), data / "c.parquet"
    )
    with pytest.raises(DataError, match=r"several columns of labels; .* :fine or :coarse"):
        opened(f"{data}/c.parquet", tmp_path)


@pytest.mark.parametrize("noted", ["[", "{}", '{"info": {"features": [1]}}', '{"info": 1}'])
def test_metadata_that_means_nothing_is_passed_over(picture, tmp_path, noted):
    table = pa.table({"image": [picture(0)], "label": [4]})
    pq.write_table(table.replace_schema_metadata({"huggingface": noted}), tmp_path / "x.parquet")
    assert opened(tmp_path / "x.parquet", tmp_path).classes == ["4"]


def test_files_that_are_damaged_or_missing(write, tmp_path, monkeypatch):
    data = write("train.parquet", [(0, 0), (1, 1)])
    with pytest.raises(DataError, match=r"there is no .*gone\.parquet; check the pattern"):
        opened(data / "gone.parquet", tmp_path)
    whole = (data / "train.parquet").read_bytes()
    (data / "train.parquet").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        opened(data / "train.parquet", tmp_path)
    (data / "train.parquet").write_bytes(b"\0" * 500 + whole[500:])
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        opened(data / "train.parquet", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "kaizen_dist.stream.sources.parquet", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'kaizen-dist\[parquet\]'"):
        opened(data / "train.parquet", tmp_path)


# ---- data sets of the Hub ---------------------------------------------------------------


def test_a_data_set_of_hugging_face(write, picture, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write("train-00000-of-00001.parquet", [(0, 1), (1, 0), (2, 1)])
    data = write("test-00000-of-00001.parquet", [(3, 1), (4, 0)])
    source = open_source(f"hf:{data}", tmp_path, progress=False)
    assert [source.name_of(i) for i in range(5)] == [
        *("train:1", "train:0", "train:2", "test:1", "test:0")
    ]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in range(5)] == [picture(seed) for seed in (1, 0, 2, 4, 3)]
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [0, 1, 1, 0, 1])
    assert source.is_val.tolist() == [False] * 3 + [True] * 2
    out = tmp_path / "out"
    prepare(f"hf:{data}", out, tasks=2, progress=False)
    assert verify(out, decode=True).problems == []
    with pytest.raises(DataError, match=r"cannot be opened .* give parquet:PATTERN"):
        open_source(f"hf:{tmp_path}/gone", tmp_path, progress=False)


def test_without_the_library_of_hugging_face(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "kaizen_dist.stream.sources.hf", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'kaizen-dist\[hf\]'"):
        open_source("hf:ylecun/mnist", tmp_path, progress=False)
