"""Every kind of source through the command, with good and bad input: never a traceback, and each
error names the place and the cure."""

import io
import json
import sys
import tarfile
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.stream.verify import verify

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is missing")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def fill(root, counts):
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(picture(100 * number + i))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def make_folders(lab):
    fill(lab / "photos", {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 1})
    fill(lab / "deep", {"cat/a/b": 5, "dog": 5})
    fill(lab / "domains", {"photo/cat": 5, "photo/dog": 5, "sketch/cat": 5})
    fill(lab / "loose", {".": 3, "a/b": 4})
    fill(lab / "faulty", {"train/cat": 6, "train/dog": 6, "train/cow": 0, "val/pig": 1})
    fill(lab / "above", {"photos/train/cat": 2})
    fill(lab / "untrained", {"val/cat": 2, "test/cat": 1})
    fill(lab / "broken", {"cat": 2, "dog": 2})
    (lab / "broken/cat/0.png").write_bytes(b"no picture")
    (lab / "broken/dog/1.png").write_bytes(b"")
    fill(lab / "phone", {"cat": 0})
    for n in range(3):
        (lab / f"phone/cat/{n}.heic").touch()
    (lab / "empty").mkdir()
    (lab / "text.tar").write_text("hello" * 1000)
    for name, mode in (("photos.tar", "w"), ("photos.tar.gz", "w:gz")):
        with tarfile.open(lab / name, mode) as tar:
            tar.add(lab / "photos", ".")


def make_tables(lab):
    files = [f"photos/train/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(6)]
    rows = [(f, f.split("/")[2] if n % 3 else "", f"{10 - n % 2}") for n, f in enumerate(files)]
    text = "".join(f"{file},{label},{task}\n" for file, label, task in rows)
    (lab / "all.csv").write_text(f"path,label,task\n{text}")
    (lab / "paths.csv").write_text("path\n" + "\n".join(files) + "\n")
    (lab / "domains.csv").write_text(
        "path;domain;label\n" + "".join(f"{f};d{n % 2};x\n" for n, f in enumerate(files))
    )
    more = f",cat,9\ngone.png,cat,9\n{files[0]},,9\n"
    (lab / "faulty.csv").write_text(f"path,label,task\n{text}{more}")
    (lab / "unknown.csv").write_text(f"path,labels\n{files[0]},cat\n")
    (lab / "nopath.csv").write_text("file,label\na.png,cat\n")
    (lab / "latin.csv").write_bytes("path,label\na.png,K\xe4fer\n".encode("latin-1"))
    (lab / "nothing.csv").touch()
    (lab / "broken.parquet").write_bytes(b"PAR1 or not")
    if find_spec("pyarrow") is None:
        return
    import pyarrow
    import pyarrow.parquet

    columns = {"path": files, "label": [label or None for _, label, _ in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), lab / "all.parquet")
    images = [{"bytes": picture(n), "path": None} for n in range(10)]
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    noted = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    table = pyarrow.table({"image": images, "label": [n % 2 for n in range(10)]})
    (lab / "hub").mkdir()
    table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, lab / "hub/train-0.parquet")


def make_shards(lab):
    (lab / "shards").mkdir()
    for tar in range(2):
        members = {}
        for n in range(6):
            label = "cat" if n % 2 else "dog"
            members[f"{tar}{n}.png"] = picture(10 * tar + n)
            members[f"{tar}{n}.cls"] = str(n % 2).encode()
            members[f"{tar}{n}.txt"] = label.encode()
            members[f"{tar}{n}.json"] = json.dumps({"about": {"label": label}}).encode()
        write_tar(lab / "shards" / f"{tar}.tar", members)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    make_folders(root)
    make_tables(root)
    make_shards(root)
    return root


@pytest.fixture
def command(lab, monkeypatch):
    """command("prepare ..."): exit code, and all that is printed and told."""
    monkeypatch.chdir(lab)

    def run(*arguments):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        error = done.exception
        if isinstance(error, KaizenError):
            return error.exit_code, str(error)
        assert error is None or isinstance(error, SystemExit), repr(error)
        return done.exit_code, done.output

    return run


GOOD = [
    ("digits", "--tasks 5", "5 tasks, 10 classes, 1,43"),
    ("folder:photos", "--tasks 2", "2 tasks, 2 classes, 12 training images (12 labelled), 3 val"),
    ("folder:photos.tar", "--tasks 2", "12 training images (12 labelled), 3 validation"),
    ("folder:photos.tar.gz", "--tasks 2", "12 training images (12 labelled), 3 validation"),
    ("folder:deep", "--tasks 1", "1 task, 2 classes, 8 training images"),
    ("folder:faulty", "--tasks 2 --skip-bad", "2 tasks, 2 classes"),
    ("folder:broken", "--tasks 1 --skip-bad", "2 left out"),
    ("folder:broken", "--tasks 1 --max-bad 0.5", "2 left out"),
    ("domains:domains", "--scenario domain", "2 tasks, 2 classes, 12 training images"),
    ("images:loose", "--tasks 2", "2 tasks, 0 classes, 7 training images (0 labelled), 0 val"),
    ("images:loose", "--tasks 3 --scenario data", "3 tasks, 0 classes"),
    ("images:photos.tar", "--tasks 1", "15 training images (0 labelled)"),
    ("table:all.csv", "--val-fraction 0", "2 tasks, 2 classes, 12 training images (8 labelled)"),
    ("table:all.csv", "--scenario class --tasks 1", "1 task, 2 classes"),
    ("table:paths.csv", "--tasks 3", "3 tasks, 0 classes, 12 training images (0 labelled)"),
    ("table:domains.csv", "--scenario domain", "2 tasks, 1 class,"),
    ("table:faulty.csv", "--skip-bad --val-fraction 0", "12 training images (8 labelled)"),
    pytest.param("table:all.parquet", "--tasks 1", "1 task, 2 classes", marks=needs_pyarrow),
    ("webdataset:shards/{0..1}.tar", "--tasks 2", "2 tasks, 2 classes, 10 training"),
    ("webdataset:shards/*.tar:txt", "--tasks 1", "1 task, 2 classes"),
    ("webdataset:shards/*.tar:json:about.label", "--tasks 1", "1 task, 2 classes"),
    ("webdataset:shards/{0..2}.tar", "--tasks 1 --skip-bad", "1 task, 2 classes"),
    pytest.param("parquet:hub/*.parquet", "--tasks 2", "2 tasks, 2 classes", marks=needs_pyarrow),
]


@pytest.mark.parametrize(("spec", "options", "words"), GOOD)
def test_good_input(command, tmp_path, spec, options, words):
    code, told = command("prepare", spec, "--out", tmp_path / "out", *options.split())
    assert (code, words in told) == (0, True), told
    assert verify(tmp_path / "out", decode=True, progress=False).problems == []
    again, told = command("prepare", spec, "--out", tmp_path / "out", *options.split())
    assert (again, words in told) == (0, True), told


BAD = [
    ("folder:nowhere", "", 3, ["there is no", "lab", "/nowhere; check the path of the source"]),
    ("folder:text.tar", "", 3, ["text.tar: not a tar, damaged or cut short"]),
    (
        "folder:faulty",
        "",
        3,
        ["without images (1): train/cow", "counterpart in train/ (1): val/pig", "--skip-bad"],
    ),
    ("folder:above", "", 3, ["photos holds a training part; give folder:", "above/photos"]),
    ("folder:untrained", "", 3, ["holds test/ with class folders, but no train/; call"]),
    ("folder:phone", "", 3, ["no class folders with images", "not read: 3 heic; convert them"]),
    ("folder:empty", "", 3, ["empty: no class folders with images in it"]),
    (
        "folder:broken",
        "--tasks 1",
        3,
        ["2 of 4 images do not decode", "cat/0.png: no image", "dog/1.png: an empty", "--max-bad"],
    ),
    ("folder:photos", "--tasks 9", 2, ["9 tasks, but the source has only 2 classes", "at most"]),
    ("folder:photos", "--scenario domain", 2, ["has no domains; give domains:PATH"]),
    ("folder:photos", "--scenario task", 2, ["has no tasks; give table:FILE"]),
    ("folder:photos", "--scenario lass", 2, ["scenario", "'class', 'data', 'domain' or 'task'"]),
    ("folder:photos", "--classes-per-task cat;cow", 2, ["photos has no class cow"]),
    ("folder:", "", 2, ["'folder:' is no source; give folder:PATH"]),
    ("fodler:photos", "", 2, ["source: 'fodler' is unknown; did you mean folder"]),
    ("domains:loose/a", "", 3, ["loose/a: no class folders with images in it"]),
    ("domains:domains", "--scenario domain --tasks 3", 2, ["3 tasks, but", "has 2 domains"]),
    ("images:empty", "", 3, ["empty: no images in it"]),
    ("images:phone", "", 3, ["phone: no images in it", "not read: 3 heic"]),
    ("images:loose", "--tasks 8", 3, ["has no training images: ask for fewer tasks"]),
    ("images:loose", "--classes-per-task a;b", 2, ["loose has no class a"]),
    ("table:gone.csv", "", 3, ["there is no", "gone.csv; check the path of the table"]),
    ("table:nothing.csv", "", 3, ["nothing.csv: is empty; its first row has to name the columns"]),
    ("table:nopath.csv", "", 3, ["nopath.csv: has no column path", "columns are file, label"]),
    ("table:unknown.csv", "", 3, ["(1): labels (did you mean label?)", "--skip-bad"]),
    (
        "table:faulty.csv",
        "",
        3,
        [
            "rows without a path (1): row 14",
            "row 15: gone.png (No such file or directory)",
            "paths that come twice (1): rows 2 and 16: photos/train/cat/0.png",
            "--skip-bad",
        ],
    ),
    (
        "table:latin.csv",
        "",
        3,
        ["latin.csv: below row 0: not CSV in UTF-8", "save the table"],
    ),
    ("table:all.csv", "--tasks 5", 2, ["5 tasks, but the source has 2 tasks", "leave the number"]),
    ("table:all.csv", "--scenario domain", 2, ["all.csv has no domains", "a column domain"]),
    ("table:photos", "", 3, ["photos: cannot be read: not a regular file"]),
    pytest.param("table:broken.parquet", "", 3, ["cannot be read as Parquet"], marks=needs_pyarrow),
    ("webdataset:gone/*.tar", "", 3, ["there is no file that matches", "check the pattern"]),
    ("webdataset:shards/{0..2}.tar", "", 3, ["not there (1): ", "shards/2.tar", "--skip-bad"]),
    ("webdataset:shards/{2..1}.tar", "", 2, ["{2..1} is neither {000..012} nor {a,b}"]),
    ("webdataset:https://x/{0..9}.tar", "", 2, ["only files on a disk are read; download them"]),
    ("webdataset:shards/*.tar:json:label", "", 3, ["field label in KEY.json", "there are about"]),
    ("webdataset:photos.tar.gz", "", 3, ["photos.tar.gz: is compressed", "gunzip it first"]),
    ("webdataset:text.tar", "", 3, ["text.tar: not a tar, damaged or cut short"]),
    pytest.param("parquet:broken.parquet", "", 3, ["cannot be read as P"], marks=needs_pyarrow),
    pytest.param("parquet:gone/*.parquet", "", 3, ["no file that matches"], marks=needs_pyarrow),
    pytest.param(
        "parquet:all.parquet",
        "",
        3,
        ["all.parquet: 0 columns of images", "its columns are path, label"],
        marks=needs_pyarrow,
    ),
    pytest.param(
        "parquet:hub/*.parquet:lable",
        "",
        3,
        ["has no column lable", "image, label"],
        marks=needs_pyarrow,
    ),
    ("torchvision:NOPE:x", "", 2, ["torchvision has no data set 'NOPE'"]),
]


@pytest.mark.parametrize(("spec", "options", "code", "words"), BAD)
def test_bad_input(command, tmp_path, spec, options, code, words):
    found, told = command("prepare", spec, "--out", tmp_path / "out", *options.split())
    assert (found, [word for word in words if word not in told]) == (code, []), told
    assert not (tmp_path / "out/stream.json").exists()


@pytest.mark.parametrize(
    ("spec", "package"), [("parquet:hub/*.parquet", "pyarrow"), ("hf:a/b", "datasets")]
)
def test_a_package_that_is_missing(command, tmp_path, monkeypatch, spec, package):
    kind = spec.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"kaizen_dist.stream.sources.{kind}", raising=False)
    code, told = command("prepare", spec, "--out", tmp_path / "out")
    assert (code, f"pip install 'kaizen-dist[{kind}]'" in told) == (2, True), told
    assert not (tmp_path / "out").exists()


def test_a_stream_grows_from_any_of_them(command, tmp_path):
    out = tmp_path / "out"
    assert command("prepare", "folder:photos", "--out", out, "--tasks", 2)[0] == 0
    for spec, options, words in [
        ("images:loose", "", "7 training images of no known class"),
        ("table:all.csv", "", "training images of"),
        ("webdataset:shards/*.tar:txt", "", "training images of"),
        ("domains:domains", "--scenario domain", "training images of"),
    ]:
        code, told = command("extend", out, spec, *options.split())
        assert (code, words in told) == (0, True), told
    assert "8 tasks, 2 classes" in told
    assert verify(out, decode=True, progress=False).problems == []
    code, told = command("extend", out, "images:loose")
    assert (code, "has all 7 images of" in told or "8 tasks" in told) == (0, True), told
    for spec, options, code, words in [
        ("images:empty", "", 3, "no images in it"),
        ("folder:faulty", "", 3, "--skip-bad"),
        ("images:loose", "--classes cow", 2, "has no class cow"),
        ("table:gone.csv", "", 3, "there is no"),
    ]:
        found, told = command("extend", out, spec, *options.split())
        assert (found, words in told) == (code, True), told
    assert verify(out, decode=True, progress=False).problems == []
