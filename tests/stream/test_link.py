"""`--link`: a stream whose shards are tars that exist already is the stream of their copies, and
whatever happens to a tar is told with its name."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.common.files import file_sha256
from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.stream import linked_tars, reader
from kaizen_dist.stream import verify as verifying
from kaizen_dist.stream.index import write_index
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.manifest_entries import PARTS
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.verify import verify

TARS, SAMPLES = 3, 24
GROUPS = [["0", "2"], ["3", "1"]]
quiet = {"progress": False}
FORMATS = (("PNG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "I;16"), ("WEBP", "RGB"))


def picture(seed: int, orientation: int = 1) -> bytes:
    """A small noisy image; seeds go through the formats that a stream stores as they are."""
    format, mode = FORMATS[seed % len(FORMATS)]
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (6, 9), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).convert(mode)
    encoded, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
        image.save(encoded, format, exif=exif)
    else:
        image.save(encoded, format)
    return encoded.getvalue()


def write_tar(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            data = data.encode() if isinstance(data, str) else data
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def fill(folder: Path) -> Path:
    """Tars of samples of four classes, some without a label, one that does not decode."""
    for tar in range(TARS):
        members: dict[str, bytes | str] = {}
        for n in range(SAMPLES):
            key = f"part/{tar}_{n:03d}"
            members[f"{key}.jpg"] = picture(100 * tar + n)
            members[f"{key}.json"] = "{}"
            if n % 11 != 10:
                members[f"{key}.cls"] = str(n % 4)
        write_tar(folder / f"{tar:03d}.tar", members)
    bad = {"bad.png": b"no image", "bad.cls": "0"}
    write_tar(folder / "000.tar", bad, "a")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    return fill(tmp_path_factory.mktemp("lab") / "tars")


@pytest.fixture
def tars(tmp_path) -> Path:
    return fill(tmp_path / "tars")


def linked(tars: Path, out: Path, **options) -> Stream:
    options = {"link": True, "max_bad": 0.1, "classes_per_task": GROUPS} | options
    return prepare(f"webdataset:{tars}/*.tar", out, **options, **quiet)


def links(stream: Path) -> dict[str, str]:
    found = (path for path in stream.glob("*/*.tar") if path.is_symlink())
    return {str(path.relative_to(stream)): str(path.readlink()) for path in found}


def images(stream: Stream) -> list:
    """All that a training sees of a stream."""
    seen = []
    for task in range(len(stream)):
        for part in PARTS:
            split = stream.split(task, part)
            of_index = split.index[["label", "id", "length", "height", "width"]]
            seen.append((of_index.tolist(), split.read_all(range(len(split)))))
    return seen


# ---- what it is -------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "data"])
def test_it_is_the_stream_of_copies_without_the_copies(lab, tmp_path, scenario):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in lab.iterdir()}
    cut = {"scenario": scenario, "tasks": 2, "classes_per_task": None}
    copied = linked(lab, tmp_path / "copied", link=False, **cut)
    stream = linked(lab, tmp_path / "linked", **cut)
    assert images(stream) == images(copied)
    assert stream.classes == copied.classes
    assert stream.fingerprint != copied.fingerprint  # the shards are others
    for path in (stream.root / "task-00").glob("*.names.jsonl"):
        assert path.read_bytes() == (copied.root / "task-00" / path.name).read_bytes()
    targets = links(stream.root)
    assert set(targets.values()) == {str(path) for path in lab.iterdir()}
    assert len(targets) == 2 * 2 * TARS
    written = [path for path in stream.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if path.suffix == ".tar"]
    assert '"link": true' in (stream.root / "stream.json").read_text()
    assert '"link"' not in (copied.root / "stream.json").read_text()
    assert [image.name for image in stream.manifest.bad] == ["000.tar/bad.png"]
    assert verify(stream.root, decode=True, **quiet).problems == []
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in lab.iterdir()} == before


def test_a_stream_that_grew_by_links_is_the_one_that_was_there_from_the_start(lab, tmp_path):
    at_once = linked(lab, tmp_path / "once")
    spec = f"webdataset:{lab}/*.tar"
    linked(lab, tmp_path / "grown", classes_per_task=GROUPS[:1])
    grown = extend(tmp_path / "grown", spec, classes=GROUPS[1], link=True, max_bad=0.1, **quiet)
    assert images(grown) == images(at_once)
    assert links(grown.root) == links(at_once.root)
    assert grown.fingerprint == at_once.fingerprint


def test_tars_that_come_in_between_change_no_task(tmp_path):
    """Also such as sort before those that are there."""
    tars = tmp_path / "tars"

    def come(name: str, labels: list[int]) -> None:
        keys = range(8 * len(labels))
        images = {f"{name}{n}.jpg": picture(n) for n in keys}
        labelled = {f"{name}{n}.cls": str(labels[n % len(labels)]) for n in keys}
        write_tar(tars / f"{name}.tar", images | labelled)

    come("b", [0])
    come("d", [0, 1])
    linked(tars, tmp_path / "grown", classes_per_task=[["0", "1"]])
    come("a", [3])
    come("c", [2])
    come("e", [2, 3])
    spec = f"webdataset:{tars}/*.tar"
    grown = extend(tmp_path / "grown", spec, classes=["3", "2"], link=True, **quiet)
    at_once = linked(tars, tmp_path / "once", classes_per_task=[["0", "1"], ["3", "2"]])
    assert grown.fingerprint == at_once.fingerprint
    assert images(grown) == images(at_once)
    assert links(grown.root) == links(at_once.root)
    assert [len(task.shards_of("train")) for task in grown.tasks] == [2, 3]


def test_tasks_of_one_stream_may_be_linked_and_copied(lab, tmp_path):
    spec = f"webdataset:{lab}/*.tar"
    linked(lab, tmp_path / "s", classes_per_task=GROUPS[:1])
    stream = extend(tmp_path / "s", spec, classes=["3"], **quiet)
    stream = extend(stream.root, spec, classes=["1"], link=True, **quiet)
    assert {name.split("/")[0] for name in links(stream.root)} == {"task-00", "task-02"}
    assert images(stream)[:2] == images(linked(lab, tmp_path / "again"))[:2]
    assert verify(stream.root, decode=True, **quiet).problems == []
    plain = linked(lab, tmp_path / "plain", link=False, classes_per_task=GROUPS[:1])
    plain = extend(plain.root, spec, classes=["3"], link=True, **quiet)
    assert plain.tasks[1].train == stream.tasks[1].train


def test_a_copy_that_follows_the_links_needs_the_tars_no_more(tars, tmp_path):
    stream = linked(tars, tmp_path / "linked")
    moved = Path(shutil.copytree(stream.root, tmp_path / "moved", symlinks=True))
    whole = Path(shutil.copytree(stream.root, tmp_path / "whole"))
    assert images(Stream.open(moved)) == images(stream)
    seen = images(stream)
    shutil.rmtree(tars)
    assert images(Stream.open(whole)) == seen
    assert Stream.open(whole).fingerprint == stream.fingerprint
    assert verify(whole, **quiet).problems == []


def test_it_is_read_through_a_cache(lab, tmp_path):
    stream = linked(lab, tmp_path / "s")
    cached = Stream.open(stream.root, StreamConfig(cache_dir=str(tmp_path / "cache")))
    assert images(cached) == images(stream)


def test_every_tar_is_summed_up_once(lab, tmp_path, monkeypatch):
    summed: list[Path] = []

    def noted(path: Path) -> str:
        summed.append(path.resolve())
        return file_sha256(path)

    monkeypatch.setattr(linked_tars, "file_sha256", noted)
    monkeypatch.setattr(verifying, "file_sha256", noted)
    stream = linked(lab, tmp_path / "s")
    assert sorted(summed) == sorted(lab.iterdir())
    summed.clear()
    assert verify(stream.root, decode=True, **quiet).problems == []
    assert sorted(path for path in summed if path.suffix == ".tar") == sorted(lab.iterdir())


# ---- interrupted, and together ----------------------------------------------------------


def test_processes_and_workers_make_the_same_together(lab, tmp_path, snapshot):
    alone = linked(lab, tmp_path / "alone")
    pooled = linked(lab, tmp_path / "pooled", workers=2)
    command = [sys.executable, "-m", "kaizen_dist", "prepare", f"webdataset:{lab}/*.tar"]
    command += ["--out", str(tmp_path / "shared"), "--classes-per-task", "0,2;3,1", "--link"]
    command += ["--max-bad", "0.1"]
    processes = [
        subprocess.Popen([*command, "--worker", f"{n}/2"], stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    for root in (pooled.root, tmp_path / "shared"):
        assert snapshot(root) == snapshot(alone.root)
        assert links(root) == links(alone.root)
        assert not (root / ".prepare").exists()


KILLED = """
import os, signal, sys
from kaizen_dist.stream.prepare import prepare

events = []

def watch(event, arguments):
    # Whatever changes a file is told here before it happens.
    if event in ("os.rename", "os.symlink", "os.remove", "os.mkdir"):
        events.append(os.path.basename(arguments[event in ("os.rename", "os.symlink")]))
        if len(events) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
groups = [["0", "2"], ["3", "1"]]
prepare(
    sys.argv[1], sys.argv[2], classes_per_task=groups, link=True, max_bad=0.1, progress=False
)
print(events.index("stream.json") + 1)
"""


def test_a_killed_preparation_is_finished_to_the_same_bytes(lab, tmp_path, snapshot):
    command = [sys.executable, "-c", KILLED, f"webdataset:{lab}/*.tar"]
    whole = tmp_path / "whole"
    done = subprocess.run([*command, whole, "0"], stdout=subprocess.PIPE, text=True, check=True)
    commit, out = int(done.stdout), tmp_path / "out"
    assert commit > 2 * len(links(whole))
    for event in np.linspace(2, commit, 7).astype(int).tolist():
        killed = subprocess.run([*command, out, str(event)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (out / "stream.json").exists()
        if event % 2:  # every other time it goes on from what the one before has left
            continue
        linked(lab, out)
        assert (snapshot(out), links(out)) == (snapshot(whole), links(whole))
        shutil.rmtree(out)


def test_a_tar_that_changes_meanwhile_is_named(tars, tmp_path, monkeypatch):
    def summed(path: Path) -> str:
        with path.open("ab") as file:
            file.write(b"more")
        return file_sha256(path)

    monkeypatch.setattr(linked_tars, "file_sha256", summed)
    with pytest.raises(DataError, match=r"tars/000\.tar: has changed since it was listed: start"):
        linked(tars, tmp_path / "out")
    assert not (tmp_path / "out/stream.json").exists()


# ---- input ------------------------------------------------------------------------------


@pytest.fixture
def command(tars, tmp_path, monkeypatch):
    """command("prepare ..."): exit code, and all that is printed and told."""
    monkeypatch.chdir(tars.parent)

    def run(*arguments):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        error = done.exception
        if isinstance(error, KaizenError):
            return error.exit_code, str(error)
        assert error is None or isinstance(error, SystemExit), repr(error)
        return done.exit_code, done.output

    return run


def add_turned(folder: Path, count: int) -> None:
    for n in range(count):
        turned = {f"t{n}.jpg": picture(1 + 5 * n, orientation=6), f"t{n}.cls": "1"}
        write_tar(folder / "turned.tar", turned, "a" if n else "w")


GOOD = [
    ("00*.tar", "--max-bad 0.1", "2 tasks, 4 classes, "),
    ("{000..001}.tar", "--skip-bad", "1 left out"),
    ("{001..007}.tar", "--skip-bad", "4 classes"),
    ("00[12].tar:json:x", "--skip-bad --scenario data", None),
    ("turned.tar", "--as-stored --classes-per-task 1", "1 task, 1 class, 3 training"),
    ("{001,turned}.tar", "--max-bad 0.2", "4 left out"),
    ("001.tar", "--tasks 1", "1 task, 4 classes"),
]


@pytest.mark.parametrize(("pattern", "options", "words"), GOOD)
def test_good_input(command, tars, tmp_path, pattern, options, words):
    add_turned(tars, 4)
    arguments = (f"webdataset:tars/{pattern}", "--out", tmp_path / "out", *options.split())
    tasks = [] if "task" in options else ["--tasks", "2"]
    code, told = command("prepare", *arguments, *tasks, "--link")
    if words is None:
        assert (code, "no sample has a label (field x in KEY.json)" in told) == (3, True), told
        return
    assert (code, words in told) == (0, True), told
    assert verify(tmp_path / "out", decode=True, **quiet).problems == []
    again, told = command("prepare", *arguments, *tasks, "--link")
    assert (again, words in told) == (0, True), told


def damage(path: Path, kind: str) -> None:
    if kind == "packed":
        path.with_suffix(".tar.gz").write_bytes(b"\x1f\x8b" + path.read_bytes())
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-9000])
    elif kind == "garbled":
        data = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            start = tar.getmember("part/1_004.jpg").offset_data
        data[start : start + 20] = bytes(20)
        path.write_bytes(data)


BAD = [
    ("webdataset:tars/*.tar", "--resize 8", 2, ["cannot resize them (to 8 pixels", "--link"]),
    ("folder:tars", "", 2, ["goes with webdataset:PATTERN", "are copied: leave out --link"]),
    ("digits", "", 2, ["images of digits are copied"]),
    ("webdataset:tars/002.tar.gz", "", 3, ["002.tar.gz: is compressed", "gunzip it first"]),
    ("webdataset:https://x/{0..9}.tar", "", 2, ["only files on a disk", "download them"]),
    ("webdataset:s3://x/0.tar", "", 2, ["only files on a disk", "download them"]),
    ("webdataset:tars/{000..003}.tar", "", 3, ["not there (1): ", "tars/003.tar", "--skip-bad"]),
    ("webdataset:gone/*.tar", "", 3, ["there is no file that matches"]),
    ("webdataset:tars/cut.tar", "", 3, ["cut.tar: ", "cut short"]),
    (
        "webdataset:tars/garbled.tar",
        "--tasks 1",
        3,
        ["do not decode", "garbled.tar/part/1_004.jpg: no image"],
    ),
    ("webdataset:tars/000.tar", "--tasks 1", 3, ["1 of 25 images do not", "000.tar/bad.png: no"]),
    (
        "webdataset:tars/turned.tar",
        "--tasks 1",
        3,
        ["4 of 4 images", "turned.tar/t0.jpg: its EXIF orientation", "--as-stored", "--link"],
    ),
    ("webdataset:tars/00*.tar", "--tasks 9", 2, ["9 tasks, but the source has only 4 classes"]),
]


@pytest.mark.parametrize(("spec", "options", "code", "words"), BAD)
def test_bad_input(command, tars, tmp_path, spec, options, code, words):
    add_turned(tars, 4)
    damage(tars / "002.tar", "packed")
    for kind in ("cut", "garbled"):
        shutil.copy(tars / "001.tar", tars / f"{kind}.tar")
        damage(tars / f"{kind}.tar", kind)
    found, told = command("prepare", spec, "--out", tmp_path / "out", "--link", *options.split())
    assert (found, [word for word in words if word not in told]) == (code, []), told
    assert not (tmp_path / "out/stream.json").exists()
    assert code == 3 or not (tmp_path / "out").exists()


def test_requests_that_do_not_fit_what_there_is(command, tars, tmp_path, monkeypatch, snapshot):
    resized = prepare("digits", tmp_path / "resized", tasks=1, resize=4, **quiet)
    stream = linked(tars, tmp_path / "s")
    before, spec = snapshot(tmp_path), "webdataset:tars/*.tar"
    monkeypatch.setattr(linked_tars, "_MOST_LINKS", 11)
    groups = ("--classes-per-task", "0,2;3,1", "--max-bad", 0.1)
    for code, words, *arguments in (
        (2, "to 4 pixels here): leave out --link", "extend", resized.root, spec, "--link"),
        (2, "link is True, not False", "prepare", spec, "--out", stream.root, *groups),
        (2, "12 links, one from each", "prepare", spec, "--out", tmp_path / "x", *groups, "--link"),
    ):
        found, told = command(*arguments)
        assert (found, words in told) == (code, True), told
        assert snapshot(tmp_path) == before


# ---- tars that go or change -------------------------------------------------------------


def change(tar: Path, how: str) -> None:
    data = tar.read_bytes()
    if how == "gone":
        tar.unlink()
    elif how == "cut":
        tar.write_bytes(data[:-512])
    elif how == "longer":
        write_tar(tar, {"new.jpg": picture(1)}, "a")
        tar.write_bytes(tar.read_bytes() + bytes(10240))
    elif how == "flipped":
        tar.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    elif how == "folder":
        tar.unlink()
        tar.mkdir()
    elif how == "pipe":
        tar.unlink()
        os.mkfifo(tar)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", "No such file or directory"),
        ("cut", " bytes, should be "),
        ("longer", " bytes, should be "),
        ("folder", " bytes, should be "),
        ("pipe", " bytes, should be "),
        ("flipped", "its sha256 is not the one in stream.json"),
    ],
)
def test_a_tar_that_is_not_what_it_was_is_named_with_its_link(command, tars, tmp_path, how, words):
    stream, tar = linked(tars, tmp_path / "s"), tars / "001.tar"
    change(tar, how)
    for decode in (False, True):
        problems = verify(stream.root, decode, **quiet).problems
        # One of its four links is named, whatever is wrong.
        where = f"{stream.root}/task-00/train-000001.tar (a link to {tar}): "
        assert [p for p in problems if not p.startswith(where)] == []
        assert words in problems[0]
    code, told = command("verify", stream.root)
    assert (code, "restore these files, or delete the folder and run" in told) == (3, True)
    if how != "flipped":
        with pytest.raises(DataError, match=rf"a link to {tar}"):
            Stream.open(stream.root)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_tar_that_changes_under_a_reader(tars, tmp_path, monkeypatch, how):
    monkeypatch.setattr(reader, "RECHECK_SECONDS", 0)
    stream, tar = linked(tars, tmp_path / "s"), tars / "001.tar"
    split, data = stream.split(0, "train"), tar.read_bytes()
    before = split.read_all(range(len(split)))
    change(tar, how)
    with pytest.raises(DataError, match=rf"train-000001\.tar \(a link to {tar}\)"):
        split.read_all(range(len(split)))
    tar.write_bytes(data)
    assert split.read_all(range(len(split))) == before


def test_rows_that_point_elsewhere_are_found_by_decoding(tars, tmp_path):
    """An index that the manifest knows, as somebody might make who wants to mislead."""
    stream = linked(tars, tmp_path / "s")
    index, manifest = stream.root / "task-00/train.index.npy", stream.manifest
    rows = np.load(index)
    rows["offset"][3] += 512
    digests = manifest.tasks[0].index_sha256 | {"train": write_index(index.parent, "train", rows)}
    first = manifest.tasks[0].model_copy(update={"index_sha256": digests})
    forged = StreamManifest.of(manifest.additions, [first, *manifest.tasks[1:]])
    (stream.root / "stream.json").write_bytes(forged.written())
    assert verify(stream.root, **quiet).problems == []
    problems = verify(stream.root, decode=True, **quiet).problems
    assert len(problems) == 1
    assert f"sample {rows['id'][3]:012d} (00" in problems[0]
    assert ".jpg): does not decode" in problems[0]


def test_an_unknown_setting_is_still_refused(lab, tmp_path):
    with pytest.raises(UsageError, match="link: Input should be a valid boolean"):
        linked(lab, tmp_path / "s", link="yes")
