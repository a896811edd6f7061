import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
from fuzzing import CASES, mutations, survive
from PIL import Image

from kaizen_dist.common.errors import DataError, UsageError, WriteError
from kaizen_dist.stream import add_tasks, images
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare

LAYOUT = {"train/a": 9, "train/b": 8, "train/c": 7, "test/a": 2, "test/b": 2, "test/c": 3}


def prepared(source, out, **options) -> Stream:
    options = {"tasks": 3, "shard_size": 4, "progress": False, **options}
    return prepare(str(source), out, **options)


# ---- what comes out ---------------------------------------------------------------------


def test_a_stream_holds_every_image_as_it_was(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    stream = prepared(f"folder:{root}", tmp_path / "out")
    # Numbered as they come: seed 5 shuffles three classes to c, b, a.
    assert (len(stream), stream.classes, stream.num_classes) == (3, ["c", "b", "a"], 3)
    assert [task.classes for task in stream.tasks] == [[0], [1], [2]]
    counts = stream.manifest.counts
    assert (counts.train, counts.val, counts.labelled, counts.bad) == (24, 7, 24, 0)
    found = {"train": set(), "val": set()}
    for number, task in enumerate(stream.tasks):
        (label,) = task.classes
        for part in ("train", "val"):
            split = stream.split(number, part)
            assert set(split.labels) == {label}
            found[part] |= {split.read(row) for row in range(len(split))}
    for part, folder in (("train", "train"), ("val", "test")):
        assert found[part] == {path.read_bytes() for path in (root / folder).rglob("*.jpg")}


def test_webdataset_and_tarfile_read_the_same_bytes_and_labels(make_folder, tmp_path):
    stream = prepared(f"folder:{make_folder(LAYOUT)}", tmp_path / "out", labels=0.5, tasks=1)
    split = stream.split(0, "train")
    ours = [
        (id, label, split.read(row))
        for row, (id, label) in enumerate(zip(split.ids, split.labels, strict=True))
    ]
    assert len({label for _, label, _ in ours}) == 4  # three classes, and unlabelled ones
    urls = [str(path) for path in split.shards]
    by_webdataset = [
        (int(found["__key__"]), int(found.get("cls", b"-1")), found["jpg"])
        for found in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert by_webdataset == ours
    by_tarfile = {}
    for path in split.shards:
        with tarfile.open(path) as tar:
            by_tarfile |= {m.name: tar.extractfile(m).read() for m in tar}
    for id, label, data in ours:
        assert by_tarfile[f"{id:012d}.jpg"] == data
        assert by_tarfile.get(f"{id:012d}.cls", b"-1") == str(label).encode()


def test_the_result_does_not_depend_on_the_number_of_workers(make_folder, tmp_path, snapshot):
    source = f"folder:{make_folder(LAYOUT)}"
    alone = prepared(source, tmp_path / "one", resize=6)
    together = prepared(source, tmp_path / "two", resize=6, workers=2)
    assert snapshot(alone.root) == snapshot(together.root)
    assert alone.fingerprint == together.fingerprint


def test_a_worker_does_not_pay_for_torch():
    command = "import sys, kaizen_dist.stream.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_the_manifest_and_its_fingerprint(make_folder, tmp_path):
    stream = prepared(f"folder:{make_folder(LAYOUT)}", tmp_path / "out", scenario="data", seed=9)
    content = json.loads((tmp_path / "out/stream.json").read_text())
    (addition,) = content["additions"]
    settings = addition["settings"]
    assert (content["format_version"], settings["scenario"], settings["seed"]) == (2, "data", 9)
    assert (addition["tasks"], content["fingerprint"]) == (3, stream.fingerprint)
    task = content["tasks"][0]
    assert [task["new_classes"] for task in content["tasks"]] == [["a", "b", "c"], [], []]
    assert (task["train"], task["val"], task["classes"]) == (8, 3, [0, 1, 2])
    names = ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert [shard["name"] for shard in task["shards"]] == names
    for shard in task["shards"]:
        path = tmp_path / "out/task-00" / shard["name"]
        sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
        assert sha256.stdout.split()[0] == shard["sha256"]
        assert path.stat().st_size == shard["bytes"]
    for part in ("train", "val"):
        for kind, suffix in (("index", "npy"), ("names", "jsonl")):
            path = tmp_path / f"out/task-00/{part}.{kind}.{suffix}"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == task[f"{kind}_sha256"][part]
    taken_over = ("seed", "shard_size", "val_fraction", "labels", "resize", "upright")
    start = {key: settings[key] for key in taken_over} | {"origin": None}
    links = ["kaizen_dist stream"]
    for entry in (start, *content["tasks"]):
        text = f"{links[-1]} {json.dumps(entry, sort_keys=True)}"
        links.append(hashlib.sha256(text.encode()).hexdigest())
    assert stream.manifest.chain == list(enumerate(links[1:]))
    assert stream.fingerprint == links[-1]
    assert all(stream.begins_with(link, tasks) for tasks, link in enumerate(links[1:]))
    assert not stream.begins_with(links[1], 1)
    assert not stream.begins_with(links[-1], 4)


def test_the_embedded_digits_make_a_stream(tmp_path):
    stream = prepare("digits", tmp_path / "out", progress=False)
    assert len(stream) == 5
    assert [len(task.classes) for task in stream.tasks] == [2] * 5
    counts = stream.manifest.counts
    assert (counts.train + counts.val, round(counts.val / 1797, 2)) == (1797, 0.2)


def test_domains_are_tasks_with_their_names(make_folder, tmp_path):
    root = make_folder({"sketch/cat": 3, "photo/cat": 4, "photo/dog": 4})
    stream = prepared(
        f"domains:{root}", tmp_path / "out", scenario="domain", tasks=None, val_fraction=0
    )
    assert [(task.name, task.classes, task.train, task.val) for task in stream.tasks] == [
        ("photo", [0, 1], 8, 0),
        ("sketch", [0], 3, 0),
    ]
    assert len(stream.split(1, "val")) == 0


def test_larger_images_are_scaled_and_others_keep_their_bytes(save_image, tmp_path):
    for number, (name, size) in enumerate({"a.jpg": (40, 30), "b.png": (30, 60)}.items()):
        save_image(tmp_path / "images/cat" / name, number, size)
    save_image(tmp_path / "images/cat/c.jpg", 3, (10, 50))
    stream = prepared(
        f"folder:{tmp_path / 'images'}", tmp_path / "out", tasks=1, resize=15, val_fraction=0
    )
    split = stream.split(0, "train")
    stored = {int(id): split.read(row) for row, id in enumerate(split.ids)}
    opened = [Image.open(io.BytesIO(stored[id])) for id in range(3)]
    assert [(i.format, i.size) for i in opened] == [
        ("JPEG", (20, 15)),
        ("PNG", (15, 30)),
        ("JPEG", (10, 50)),
    ]
    assert stored[2] == (tmp_path / "images/cat/c.jpg").read_bytes()
    for row, id in enumerate(split.ids):
        height, width = split.index["height"][row], split.index["width"][row]
        assert (width, height) == opened[id].size


# ---- interrupted and taken up -----------------------------------------------------------

KILLED = """
import os, signal, sys
from kaizen_dist.stream import prepare as preparing, shard_jobs as module

decode, count = module.decode_whole, 0
def decode_until(data, *how):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, *how)

module.decode_whole = decode_until
options = {"scenario": "data", "tasks": 3, "shard_size": 4, "progress": False}
preparing.prepare(sys.argv[1], sys.argv[2], **options)
"""


@pytest.mark.parametrize("packed", [False, True])
def test_a_killed_preparation_is_finished_to_the_same_bytes(
    make_folder, tmp_path, snapshot, packed
):
    source = make_folder(LAYOUT)
    if packed:
        with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as tar:
            tar.add(source, arcname=".")
        source = tmp_path / "images.tar.gz"
    whole = prepared(f"folder:{source}", tmp_path / "whole", scenario="data")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, f"folder:{source}", str(out), "14"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    shards = sorted(out.glob("task-*/*.tar"))
    assert len(list(out.glob("task-*/.*.tmp"))) == 1
    with pytest.raises(DataError, match=r"unfinished.*run the same `kaizen-dist prepare`"):
        Stream.open(out)
    times = [path.stat().st_mtime_ns for path in shards]
    assert len(times) >= 3
    finished = prepared(f"folder:{source}", out, scenario="data")
    assert snapshot(finished.root) == snapshot(whole.root)
    assert [path.stat().st_mtime_ns for path in shards] == times, "a finished shard was redone"


def test_a_finished_shard_that_was_damaged_since_is_written_again(
    make_folder, tmp_path, snapshot, monkeypatch
):
    source = f"folder:{make_folder(LAYOUT)}"
    whole = prepared(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(add_tasks, "_commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "out")
    os.truncate(tmp_path / "out/task-01/train-000000.tar", 100)
    assert snapshot(prepared(source, tmp_path / "out").root) == snapshot(whole.root)


def interrupt(*_):
    raise KeyboardInterrupt


ORPHANED = """
import multiprocessing, os, signal, sys
from kaizen_dist.stream import pool, prepare as module

def main():
    def wait(*_):
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    pool.wait = wait
    options = {"scenario": "data", "tasks": 3, "shard_size": 4, "progress": False}
    module.prepare(sys.argv[1], sys.argv[2], workers=2, **options)

if __name__ == "__main__":
    main()
"""


def test_workers_do_not_outlive_a_killed_parent(make_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANED)
    command = [sys.executable, script, f"folder:{make_folder(LAYOUT)}", tmp_path / "out"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in done.stdout.split()]
    assert (done.returncode, len(workers)) == (-signal.SIGKILL, 2)
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker waits for ever"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_finished_stream_is_left_alone(make_folder, tmp_path):
    source = make_folder(LAYOUT)
    stream = prepared(f"folder:{source}", tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in stream.root.rglob("*")}
    shutil.rmtree(source)
    assert prepared(f"folder:{source}", tmp_path / "out").fingerprint == stream.fingerprint
    assert {path: path.stat().st_mtime_ns for path in stream.root.rglob("*")} == times


def test_other_settings_are_refused_by_name_finished_or_not(make_folder, tmp_path, monkeypatch):
    source = f"folder:{make_folder(LAYOUT)}"
    prepared(source, tmp_path / "finished")
    with monkeypatch.context() as patch:
        patch.setattr(add_tasks, "_commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "unfinished")
    for out in (tmp_path / "finished", tmp_path / "unfinished"):
        with pytest.raises(UsageError, match=r"seed is 5, not 6; labels is 1\.0, not 0\.5"):
            prepared(source, out, seed=6, labels=0.5)
        with pytest.raises(UsageError, match="tasks is 3, not 2"):
            prepared(source, out, tasks=2)


def test_a_source_that_changed_in_between_is_refused(
    make_folder, save_image, tmp_path, monkeypatch
):
    root = make_folder(LAYOUT)
    with monkeypatch.context() as patch:
        patch.setattr(add_tasks, "_commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepared(f"folder:{root}", tmp_path / "out")
    save_image(root / "train/a/new.jpg", 5)
    with pytest.raises(DataError, match="has changed since"):
        prepared(f"folder:{root}", tmp_path / "out")


@pytest.mark.parametrize("packed", [None, "w", "w:gz"])
def test_a_source_that_changed_since_the_stream_was_finished_is_refused(
    make_folder, save_image, tmp_path, snapshot, packed
):
    root = make_folder(LAYOUT)
    place = tmp_path / "images.tar" if packed else root

    def source() -> str:
        if packed:
            with tarfile.open(place, packed) as tar:
                tar.add(root, arcname=".")
        return f"folder:{place}"

    stream = prepared(source(), tmp_path / "out")
    before = snapshot(stream.root)
    assert prepared(f"folder:{place}", tmp_path / "out").fingerprint == stream.fingerprint
    save_image(root / "train/a/new.jpg", 5)
    refused = (
        r"folder:\S+ has changed since \S+/out was made .*`kaizen-dist extend \S+/out folder:\S+` "
        r"adds what is new as a task; or give another --out"
    )
    with pytest.raises(UsageError, match=refused):
        prepared(source(), tmp_path / "out")
    shutil.rmtree(root / "train/c")
    with pytest.raises(UsageError, match=refused):
        prepared(source(), tmp_path / "out")
    assert snapshot(stream.root) == before
    # A stream of an earlier version notes nothing of its source.
    noted = json.loads((stream.root / "stream.json").read_text())
    noted["additions"][0]["source_stamp"] = None
    (stream.root / "stream.json").write_text(json.dumps(noted))
    assert prepared(f"folder:{place}", tmp_path / "out").fingerprint == stream.fingerprint


@pytest.mark.parametrize("cases", [60, pytest.param(CASES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("finished", [True, False])
def test_damage_to_what_is_noted_of_a_source(make_folder, tmp_path, monkeypatch, finished, cases):
    """Of a finished stream: refused, or the same stream. Of one that was begun: refused, or made as
    from the beginning."""
    source, out = f"folder:{make_folder(LAYOUT)}", tmp_path / "out"
    if finished:
        prepared(source, out)
        path = out / "stream.json"
    else:
        with monkeypatch.context() as patch:
            patch.setattr(add_tasks, "_commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepared(source, out)
        path = out / ".prepare/settings.json"
    whole = prepared(source, tmp_path / "whole").fingerprint
    document = path.read_bytes()
    accepted = 0
    for what, data in mutations(document, cases):
        begun = out if finished else shutil.copytree(out, tmp_path / "begun")
        (begun / path.relative_to(out)).write_bytes(data)
        outcome = survive(partial(prepared, source, begun))
        if isinstance(outcome, Stream):
            accepted += 1
            assert outcome.fingerprint == whole, what
        if not finished:
            shutil.rmtree(begun)
    assert accepted < cases / 2


def test_what_lies_beside_the_images_may_change(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    stream = prepared(f"folder:{root}", tmp_path / "out")
    (root / ".DS_Store").touch()
    (root / "train/a/notes.txt").touch()
    assert prepared(f"folder:{root}", tmp_path / "out").fingerprint == stream.fingerprint


def test_what_was_used_and_what_was_not_is_said_in_one_listing(make_folder, tmp_path, capfd):
    counts = {"Train/a": 3, "Train/b": 2, "VALID/a": 1, "VALID/b": 1, "test/a": 2, "extra/a": 1}
    root = make_folder(counts)
    (root / "lost+found").mkdir()
    (root / "Train/a/odd\n[b]\x1b[31m").symlink_to("/nowhere")
    prepared(f"folder:{root}", tmp_path / "out", tasks=1, progress=True)
    listing = capfd.readouterr().err
    for line in (
        "Train/ is the training part: 5 images",
        "VALID/ is the validation part: 2 images",
        "test/ is left out: VALID/ is the validation part (2 files)",
        r"ignored: Train/a/odd\n[b]\x1b[31m (a link that leads nowhere), "
        "extra/ (1 file), lost+found",
    ):
        assert f"  {line}\n" in listing


def test_two_at_once_are_refused(make_folder, tmp_path):
    out = tmp_path / "out"
    (out / ".prepare").mkdir(parents=True)
    with (out / ".prepare/lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is preparing"):
            prepared(f"folder:{make_folder(LAYOUT)}", out)
    assert len(prepared(f"folder:{tmp_path / 'images'}", out)) == 3


# ---- bad images -------------------------------------------------------------------------


def test_a_broken_image_is_left_out_and_listed(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    data = (root / "train/b/003.jpg").read_bytes()
    (root / "train/b/003.jpg").write_bytes(data[: len(data) // 2])
    (root / "test/c/001.jpg").write_bytes(b"")
    stream = prepared(f"folder:{root}", tmp_path / "out", max_bad=0.1)
    # By id, so in the order of the tasks: c, b, a.
    assert [image.name for image in stream.manifest.bad] == ["test/c/001.jpg", "train/b/003.jpg"]
    assert "an empty file" in stream.manifest.bad[0].reason
    counts = stream.manifest.counts
    assert (counts.train, counts.val, counts.bad) == (23, 6, 2)
    ids = np.concatenate([stream.split(t, p).ids for t in range(3) for p in ("train", "val")])
    assert set(range(31)) - set(ids) == {image.id for image in stream.manifest.bad}


def test_too_many_broken_images_are_an_error_that_names_some(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    (root / "train/b/003.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"1 of 31 images.*\n.*b/003\.jpg: no image of a known"):
        prepared(f"folder:{root}", tmp_path / "out")
    # What was written counts: allowing more finishes it.
    assert prepared(f"folder:{root}", tmp_path / "out", max_bad=0.05).manifest.counts.bad == 1


@pytest.mark.filterwarnings("error")
def test_an_image_of_dishonest_size_is_a_broken_one(make_folder, save_image, tmp_path, monkeypatch):
    root = make_folder(LAYOUT)
    save_image(root / "train/a/huge.png", 1, (60, 50))
    monkeypatch.setattr(images, "MOST_PIXELS", 2000)
    stream = prepared(f"folder:{root}", tmp_path / "out", max_bad=0.1)
    assert [image.name for image in stream.manifest.bad] == ["train/a/huge.png"]


def test_a_task_of_which_no_image_decodes(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    for path in (root / "train/c").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="has no training images that decode"):
        prepared(f"folder:{root}", tmp_path / "out", max_bad=0.5)


def test_special_files_and_links_that_lead_nowhere_are_bad_images(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    os.mkfifo(root / "train/a/pipe.jpg")
    (root / "train/a/zero.png").symlink_to("/dev/zero")
    (root / "train/a/gone.png").symlink_to("/nowhere/gone.png")
    with pytest.raises(DataError, match=r"a/gone\.png: a link that leads nowhere"):
        prepared(f"folder:{root}", tmp_path / "refused")
    stream = prepared(f"folder:{root}", tmp_path / "out", max_bad=0.1)
    pipe = "a device or a pipe, not a file"
    assert {bad.name: bad.reason for bad in stream.manifest.bad} == {
        "train/a/gone.png": "a link that leads nowhere",
        "train/a/pipe.jpg": pipe,
        "train/a/zero.png": pipe,
    }
    assert stream.manifest.counts.train == 24


# ---- bad requests -----------------------------------------------------------------------


def test_all_bad_settings_are_named_at_once_and_leave_nothing(tmp_path):
    with pytest.raises(
        UsageError, match=r"scenario: .*tasks: .*val_fraction: .*labels: .*resize: "
    ):
        prepared(
            "digits", tmp_path / "out", scenario="x", tasks=0, val_fraction=1, labels=2, resize=0
        )
    with pytest.raises(UsageError, match="order of domains goes with the scenario domain"):
        prepared("digits", tmp_path / "out", domain_order=["a"])
    with pytest.raises(UsageError, match="workers must be at least 1"):
        prepared("digits", tmp_path / "out", workers=0)
    with pytest.raises(UsageError, match="20 tasks"):
        prepared("digits", tmp_path / "out", tasks=20)
    with pytest.raises(DataError, match="there is no"):
        prepared(f"folder:{tmp_path / 'nowhere'}", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_stream_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not empty and no stream"):
        prepared("digits", tmp_path / "out")
    with pytest.raises(UsageError, match="is a file"):
        prepared("digits", tmp_path / "out/thesis.tex")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


FULL_DISK = """
import resource, sys
from kaizen_dist.common.errors import WriteError
from kaizen_dist.stream.prepare import prepare

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        options = {"scenario": "data", "workers": int(sys.argv[2]), "progress": False}
        prepare("digits", sys.argv[1], **options)
    except WriteError as error:
        sys.exit(str(error))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_cannot_be_written_is_a_write_error(tmp_path, workers):
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    command = [sys.executable, script, tmp_path / "out", workers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("task-*/.*.tmp"))


def test_a_place_that_cannot_hold_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        prepared("digits", tmp_path / "file/out")


# ---- opening ----------------------------------------------------------------------------


@pytest.fixture
def stream(make_folder, tmp_path):
    return prepared(f"folder:{make_folder(LAYOUT)}", tmp_path / "out")


def test_what_is_no_stream(tmp_path):
    with pytest.raises(DataError, match=r"no stream .*kaizen-dist prepare SOURCE"):
        Stream.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not a stream: it holds no stream\.json"):
        Stream.open(tmp_path)


def test_all_missing_and_wrong_sized_files_are_named(stream):
    (stream.root / "task-00/train-000001.tar").unlink()
    (stream.root / "task-01/val.index.npy").unlink()
    os.truncate(stream.root / "task-02/val-000000.tar", 1024)
    with pytest.raises(DataError) as caught:
        Stream.open(stream.root)
    for name in ("task-00/train-000001.tar", "task-01/val.index.npy", "task-02/val-000000.tar"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3, this program reads versions 1 and 2"),
        ({"additions": "many"}, "damaged: additions: "),
        ({"surprise": 1}, "damaged: surprise: "),
    ],
)
def test_a_manifest_that_is_not_ours(stream, change, message):
    path = stream.root / "stream.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        Stream.open(stream.root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_a_manifest_that_is_none(stream, content):
    (stream.root / "stream.json").write_bytes(content)
    with pytest.raises(DataError, match=r"stream\.json"):
        Stream.open(stream.root)


def test_an_index_of_another_length_is_refused(stream):
    shutil.copy(stream.root / "task-00/val.index.npy", stream.root / "task-00/train.index.npy")
    with pytest.raises(DataError, match=r"train\.index\.npy: . rows, but stream\.json counts"):
        stream.split(0, "train")


def test_a_work_folder_left_beside_a_whole_stream_is_cleared(stream, make_folder, tmp_path):
    (stream.root / ".prepare").mkdir()
    prepared(f"folder:{tmp_path / 'images'}", stream.root)
    assert not (stream.root / ".prepare").exists()
