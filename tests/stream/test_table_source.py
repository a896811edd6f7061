"""Tables of images: columns, row by row, good and bad."""

import pytest

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.sources import has_tasks, open_source, source_stamp
from kaizen_dist.stream.verify import verify

ROWS = [
    {"path": "b.jpg", "label": "dog", "split": "train", "domain": "photo", "task": "10"},
    {"path": "a.jpg", "label": "cat", "split": "", "domain": "sketch", "task": "9"},
    {"path": "sub/c.jpg", "label": "", "split": "Train", "domain": "", "task": "9"},
    {"path": "./d.jpg", "label": "dog", "split": "valid", "domain": "photo", "task": "10"},
]


@pytest.fixture
def folder(save_image, tmp_path):
    for seed, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg", "d.jpg")):
        save_image(tmp_path / "t" / name, seed)
    return tmp_path / "t"


def write_csv(path, rows, separator=",", end="\n", encoding="utf-8"):
    header = list(rows[0])
    lines = [header, *([row.get(name, "") for name in header] for row in rows)]
    path.write_bytes("".join(separator.join(line) + end for line in lines).encode(encoding))
    return path


def write_parquet(path, rows):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {name: [row.get(name) or None for row in rows] for name in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def opened(path, tmp_path, skip_bad=False):
    return open_source(f"table:{path}", tmp_path / "work", progress=False, skip_bad=skip_bad)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tabs", "excel", "parquet"])
def test_all_columns(folder, tmp_path, kind):
    if kind == "parquet":
        path = write_parquet(folder / "t.parquet", ROWS)
    else:
        separator = {"semicolons": ";", "tabs": "\t"}.get(kind, ",")
        end, encoding = ("\r\n", "utf-8-sig") if kind == "excel" else ("\n", "utf-8")
        path = write_csv(folder / "t.csv", ROWS, separator, end, encoding)
    source = opened(path, tmp_path)
    names = ["sub/c.jpg", "a.jpg", "b.jpg", "d.jpg"]
    assert [source.name_of(i) for i in range(len(source))] == names
    assert [source.read(i) for i in range(4)] == [(folder / name).read_bytes() for name in names]
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [-1, 0, 1, 1])
    assert source.is_val.tolist() == [False, False, False, True]
    assert source.domains == ["photo", "sketch"]
    assert source.domains_of.tolist() == [-1, 1, 0, 0]
    assert (source.tasks, source.tasks_of.tolist()) == (["task 9", "task 10"], [0, 0, 1, 1])
    assert source.told == ("2 classes, 4 images, 1 of them without a label, 1 for validation",)
    assert has_tasks(f"table:{path}")


def test_the_path_alone(folder, tmp_path):
    path = write_csv(folder / "t.csv", [{"path": str(folder / row["path"])} for row in ROWS])
    source = opened(path, tmp_path)
    assert (source.classes, source.labels.tolist(), source.has_val) == ([], [-1] * 4, False)
    assert (source.tasks_of, has_tasks(f"table:{path}")) == (None, False)


def test_labels_that_are_numbers_are_in_their_order(folder, tmp_path):
    rows = [
        {"path": row["path"], "label": n}
        for row, n in zip(ROWS, ("10", "9", "10", "2"), strict=True)
    ]
    assert opened(write_csv(folder / "t.csv", rows), tmp_path).classes == ["2", "9", "10"]
    rows = [dict(row, label=n) for row, n in zip(rows, (10.0, None, 10.0, 2.0), strict=True)]
    source = opened(write_parquet(folder / "t.parquet", rows), tmp_path)
    assert (source.classes, source.labels.tolist()) == (["2", "10"], [-1, 0, 1, 1])


def test_test_is_left_out_beside_a_validation_part(folder, tmp_path):
    rows = [
        dict(row, split=s) for row, s in zip(ROWS, ("train", "test", "train", "val"), strict=True)
    ]
    source = opened(write_csv(folder / "t.csv", rows), tmp_path)
    assert [source.name_of(i) for i in range(len(source))] == ["sub/c.jpg", "b.jpg", "d.jpg"]
    assert source.told[1] == "split test is left out: there is a validation part (1 row)"
    assert (source.classes, source.is_val.tolist()) == (["dog"], [False, False, True])


def test_the_tasks_come_as_the_table_says_and_grow_with_it(folder, save_image, tmp_path):
    rows = [
        dict(row, split="", task=t) for row, t in zip(ROWS, ("spring", "autumn") * 2, strict=True)
    ]
    path, out = write_csv(folder / "t.csv", rows), tmp_path / "out"
    stream = prepare(f"table:{path}", out, val_fraction=0, progress=False)
    assert [task.name for task in stream.tasks] == ["spring", "autumn"]
    assert stream.scenario == "task"
    assert (stream.classes, [task.labelled for task in stream.tasks]) == (["dog", "cat"], [1, 2])
    save_image(folder / "e.jpg", 9)
    rows.append({"path": "e.jpg", "label": "cow", "split": "", "domain": "", "task": "winter"})
    write_csv(path, rows)
    with pytest.raises(UsageError, match=r"has changed since .* `kaizen-dist extend"):
        prepare(f"table:{path}", out, val_fraction=0, progress=False)
    stream = extend(out, f"table:{path}", progress=False)
    assert [task.name for task in stream.tasks] == ["spring", "autumn", "winter"]
    assert stream.classes == ["dog", "cat", "cow"]
    assert verify(out, decode=True).problems == []
    at_once = prepare(f"table:{path}", tmp_path / "at once", val_fraction=0, progress=False)
    assert at_once.fingerprint == stream.fingerprint


def test_another_scenario_may_be_asked_for(folder, tmp_path):
    path = write_csv(folder / "t.csv", ROWS)
    stream = prepare(
        f"table:{path}", tmp_path / "out", scenario="class", tasks=1, val_fraction=0, progress=False
    )
    assert ([task.name for task in stream.tasks], stream.scenario) == (["task 0"], "class")


def test_a_stamp_notices_a_label_that_has_changed_and_a_table_that_is_gone(folder, tmp_path):
    path = write_csv(folder / "t.csv", ROWS)
    before = source_stamp(f"table:{path}")
    assert before == source_stamp(f"table:{path}", opened(path, tmp_path))
    write_csv(path, [dict(ROWS[0], label="cat"), *ROWS[1:]])
    assert source_stamp(f"table:{path}") not in (None, before)
    path.unlink()
    assert source_stamp(f"table:{path}") is None


# ---- faults -----------------------------------------------------------------------------


def test_every_faulty_row_is_told_at_once_and_left_out_if_asked(folder, tmp_path):
    rows = [
        *ROWS,
        {"path": "", "label": "cat", "task": "9"},
        {"path": "gone.jpg", "label": "cat", "task": "9"},
        {"path": "sub", "label": "cat", "task": "9"},
        {"path": "sub/../a.jpg", "label": "dog", "task": "9"},
        {"path": "b.jpg", "label": "dog", "split": "dev", "task": "9"},
        {"path": "b.jpg", "label": "dog"},
    ]
    path = write_csv(folder / "t.csv", rows)
    with path.open("a") as file:
        file.write("a.jpg,cat,train,photo,9,more\n\n")
    with pytest.raises(DataError) as raised:
        opened(path, tmp_path)
    lines = str(raised.value).split("\n  ")
    assert lines[0] == f"table:{path} has faults:"
    assert lines[1:7] == [
        "rows without a path (1): row 6",
        "files that cannot be read (2): row 7: gone.jpg (No such file or directory), "
        "row 8: sub (not a file)",
        "rows whose split is none of train, val, valid, validation, test (1): row 10: 'dev'",
        "rows without a task (1): row 11",
        "rows with more cells than there are columns (1): row 12",
        "paths that come twice (1): rows 3 and 9: a.jpg",
    ]
    assert str(raised.value).endswith("mend them, or leave out what is faulty with --skip-bad")
    source = opened(path, tmp_path, skip_bad=True)
    assert [source.name_of(i) for i in range(len(source))] == [
        *("sub/c.jpg", "a.jpg", "b.jpg", "d.jpg")
    ]
    assert source.told[1] == "left out: rows without a path (1): row 6"


def test_validation_images_need_a_label_that_is_taught(folder, tmp_path):
    rows = [
        dict(ROWS[0]),
        dict(ROWS[1], split="val"),
        dict(ROWS[2], split="val"),
        dict(ROWS[3]),
    ]
    path = write_csv(folder / "t.csv", rows)
    with pytest.raises(DataError, match="has faults") as raised:
        opened(path, tmp_path)
    assert "validation images without a label (1): row 4: sub/c.jpg" in str(raised.value)
    assert "classes that only validation images have (1): cat (row 3: a.jpg)" in str(raised.value)
    source = opened(path, tmp_path, skip_bad=True)
    assert [source.name_of(i) for i in range(len(source))] == ["b.jpg", "d.jpg"]
    assert source.classes == ["dog"]


def test_columns_that_are_unknown(folder, tmp_path):
    path = write_csv(folder / "t.csv", [{"path": "a.jpg", "lable": "cat", "width": "9"}])
    with pytest.raises(DataError, match=r"\(2\): lable \(did you mean label\?\), width\n"):
        opened(path, tmp_path)
    assert opened(path, tmp_path, skip_bad=True).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; its first row has to name the columns"),
        (b"\n\n", "is empty"),
        (b"file,label\na.jpg,cat\n", "has no column path, .*; its columns are file, label"),
        (b"image,label\n", "give parquet:FILE"),
        (b"path,label,label\na.jpg,x,y\n", "has the column label twice"),
        (b"path\n", "no images in it"),
        (b"path\ngone.jpg\n", r"no images in it\n  files that cannot be read \(1\): row 2"),
        (b"path\na.jpg\nb\xff.jpg\n", "not CSV in UTF-8"),
        (b'path\na.jpg\n"b.jpg\n', "below row 2: not CSV in UTF-8"),
        (b"path,label\na.jpg,c\x07t\n", r"'c\\\\x07t' cannot be the name of a class"),
        (b"path\n" + b"a" * 300 + b"/" + b"b" * 300 + b".jpg\n", "File name too long"),
        (b"path\na\x00.jpg\n", "null byte|NUL"),
    ],
)
def test_a_table_that_is_none(folder, tmp_path, content, words):
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=words) as raised:
        opened(folder / "t.csv", tmp_path)
    assert str(folder / "t.csv") in str(raised.value)


def test_what_is_missing_or_no_parquet(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no .*gone\.csv"):
        opened(folder / "gone.csv", tmp_path)
    with pytest.raises(DataError, match=r"cannot be read: not a regular file"):
        opened(folder, tmp_path)
    (folder / "t.parquet").write_bytes(b"PAR1")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install 'kaizen-dist\[parquet\]'"):
            opened(folder / "t.parquet", tmp_path)
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet"):
        opened(folder / "t.parquet", tmp_path)
