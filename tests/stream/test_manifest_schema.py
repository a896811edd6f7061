"""What a stream.json may not say: refused by field, by whoever opens the stream."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fuzzing import CASES, mutations, survive
from PIL import Image

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.manifest_entries import PARTS, Settings, TaskInfo, chain
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.verify import verify

QUICK = 60


def save(path: Path, draw: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    """Two tasks of two classes in several shards, one image left out."""
    root = tmp_path_factory.mktemp("schema")
    draw = np.random.default_rng(0)
    for label in "abcd":
        for n in range(5):
            save(root / "images" / ("train" if n else "test") / label / f"{n}.png", draw)
    (root / "images/train/a/broken.png").write_bytes(b"no image")
    options = {"tasks": 2, "shard_size": 3, "max_bad": 1.0, "progress": False}
    return prepare(f"folder:{root / 'images'}", root / "stream", **options)


@pytest.fixture(scope="module")
def grown(stream, tmp_path_factory) -> Stream:
    """It, extended by a task of known classes and a new one."""
    root = Path(shutil.copytree(stream.root, tmp_path_factory.mktemp("grown") / "stream"))
    return extended(root)


@pytest.fixture(scope="module")
def grown_from_v1(stream, tmp_path_factory) -> Stream:
    """The same, begun in format 1."""
    root = Path(shutil.copytree(stream.root, tmp_path_factory.mktemp("grown") / "stream"))
    (root / "stream.json").write_text(json.dumps(content_of_v1(stream)))
    return extended(root)


def extended(root: Path) -> Stream:
    draw = np.random.default_rng(1)
    for label in "bcx":
        for n in range(4):
            save(root.parent / "more" / label / f"{n}.png", draw)
    (root.parent / "more/b/broken.png").write_bytes(b"no image")
    return extend(root, f"folder:{root.parent / 'more'}", max_bad=1.0, progress=False)


@pytest.fixture
def written(stream, tmp_path):
    """written(data): the stream with other bytes as its stream.json."""
    return partial(rewritten, tmp_path / "stream", stream)


def rewritten(root: Path, stream: Stream, data: bytes) -> Path:
    """In the folder `root`, the stream with other bytes as its stream.json."""
    root.mkdir(exist_ok=True)
    for task in stream.tasks:
        if not (root / task.folder).exists():
            (root / task.folder).symlink_to(stream.root / task.folder)
    (root / "stream.json").write_bytes(data)
    return root


def content_of(stream: Stream) -> dict:
    return json.loads((stream.root / "stream.json").read_bytes())


def content_of_v1(stream: Stream) -> dict:
    """What a program of format 1 would have written of the stream."""
    content = content_of(stream)
    (addition,) = content["additions"]
    settings = {k: v for k, v in addition["settings"].items() if k not in ("classes", "name")}
    without = ("new_classes", "names_sha256")
    return settings | {
        "format_version": 1,
        "classes": list(stream.classes),
        "counts": stream.manifest.counts.model_dump(),
        "tasks": [{k: v for k, v in t.items() if k not in without} for t in content["tasks"]],
        "bad": addition["bad"],
    }


def put(content: dict, path: str, value: object) -> None:
    *holders, last = path.split(".")
    for key in holders:
        content = content[int(key) if isinstance(content, list) else key]
    content[int(last) if isinstance(content, list) else last] = value


SETTINGS = "additions.0.settings"

FAULTS = [
    # (what is changed, to what, what the error names)
    ("tasks.1.new_classes", ["b", "d", "d"], "classes has 'd' twice"),
    ("tasks.1.new_classes", ["x", "y", "z"], "fingerprint is not that of the tasks"),
    ("tasks.1.new_classes", [], "tasks.1.classes names class 3, there are 2 by then"),
    ("tasks.0.new_classes.1", "", "tasks.0.new_classes.1: "),
    ("tasks.0.new_classes.1", "\x1b[31mred", "tasks.0.new_classes.1: holds control characters"),
    ("tasks.0.new_classes.1", "two\nlines", "tasks.0.new_classes.1: holds control characters"),
    ("tasks.0.new_classes.1", "\ud800", "half a surrogate pair"),
    ("tasks.0.new_classes.1", 1, "tasks.0.new_classes.1: "),
    ("tasks.0.new_classes.1", "x" * 5000, "tasks.0.new_classes.1: "),
    (f"{SETTINGS}.source", "folder:\0", f"{SETTINGS}.source: holds control characters"),
    (f"{SETTINGS}.scenario", "other", f"{SETTINGS}.scenario: "),
    (f"{SETTINGS}.classes", [["a"], ["b", "a"]], f"{SETTINGS}.classes: name 'a' twice"),
    (f"{SETTINGS}.classes", [[]], f"{SETTINGS}.classes.0: "),
    (f"{SETTINGS}.name", "", f"{SETTINGS}.name: "),
    (f"{SETTINGS}.tasks_wanted", 3, "additions.0: tasks_wanted is 3, but there are 2 tasks"),
    (f"{SETTINGS}.tasks_wanted", -1, f"{SETTINGS}.tasks_wanted: "),
    (f"{SETTINGS}.shard_size", 2, "fingerprint is not that of the tasks"),
    (f"{SETTINGS}.shard_size", 0, f"{SETTINGS}.shard_size: "),
    (f"{SETTINGS}.labels", 0, "fingerprint is not that of the tasks"),
    (f"{SETTINGS}.labels", float("nan"), f"{SETTINGS}.labels: "),
    (f"{SETTINGS}.val_fraction", 1, f"{SETTINGS}.val_fraction: "),
    (f"{SETTINGS}.val_fraction", 0.3, "fingerprint is not that of the tasks"),
    (f"{SETTINGS}.seed", 6, "fingerprint is not that of the tasks"),
    (f"{SETTINGS}.seed", -1, f"{SETTINGS}.seed: "),
    (f"{SETTINGS}.seed", 2**63, f"{SETTINGS}.seed: "),
    (f"{SETTINGS}.seed", True, f"{SETTINGS}.seed: "),
    (f"{SETTINGS}.seed", "5", f"{SETTINGS}.seed: "),
    (f"{SETTINGS}.resize", 0, f"{SETTINGS}.resize: "),
    (f"{SETTINGS}.resize", 9, "fingerprint is not that of the tasks"),
    (f"{SETTINGS}.new", 1, f"{SETTINGS}.new: "),
    ("new", 1, "new: "),
    ("additions", [], "additions: "),
    ("additions.0.tasks", 1, "additions.0: tasks_wanted is 2, but there are 1 tasks"),
    ("additions.0.tasks", 0, "additions.0.tasks: "),
    ("additions.0.ignored", -1, "additions.0.ignored: "),
    ("additions.0.ignored", 10**13, "additions.0.ignored: "),
    ("additions.0.source_stamp", "0" * 63, "additions.0.source_stamp: "),
    ("additions.0.bad.0.id", -1, "additions.0.bad.0.id: "),
    ("additions.0.bad.0.id", 0, "the indices, with bad, do not have every id once"),
    ("additions.0.bad", [], "the indices, with bad, do not have every id once"),
    ("fingerprint", "0" * 64, "fingerprint is not that of the tasks"),
    ("fingerprint", "0" * 63, "fingerprint: "),
    ("origin", {"fingerprint": "0" * 64, "tasks": 1, "classes": ["x"]}, "fingerprint is not"),
    ("origin", {"fingerprint": "0" * 64, "tasks": 3, "classes": ["x"]}, "origin.tasks is 3 of 2"),
    ("origin", {"fingerprint": "0" * 64, "tasks": 1, "classes": []}, "origin.classes: "),
    ("tasks", [], "tasks: "),
    ("tasks.0.folder", "task-01", "tasks.folder has 'task-01' twice"),
    ("tasks.0.folder", "..", "tasks.0.folder: "),
    ("tasks.0.name", "task 1", "fingerprint is not that of the tasks"),
    ("tasks.0.classes", [], "fingerprint is not that of the tasks"),
    ("tasks.1.classes", [2, 0], "fingerprint is not that of the tasks"),
    ("tasks.0.classes", [1, 1], "classes name 1 twice"),
    ("tasks.0.classes", [1, -1], "tasks.0.classes.1: "),
    ("tasks.0.classes", [1, 2], "tasks.0.classes names class 2, there are 2 by then"),
    ("tasks.1.classes", [2, 4], "tasks.1.classes names class 4, there are 4 by then"),
    ("tasks.0.train", 9, "tasks.0: train is 9, but its shards hold 8"),
    ("tasks.0.train", 0, "tasks.0.train: "),
    ("tasks.0.val", 1, "tasks.0: val is 1, but its shards hold 2"),
    ("tasks.0.labelled", 9, "tasks.0: labelled is 9 of 8 images"),
    ("tasks.0.labelled", 7, "fingerprint is not that of the tasks"),
    ("tasks.0.index_sha256", {"train": "0" * 64}, "tasks.0: index_sha256.val is missing"),
    ("tasks.0.index_sha256.val", "0" * 63, "tasks.0.index_sha256.val: "),
    ("tasks.0.index_sha256.test", "0" * 64, "tasks.0.index_sha256.test"),
    ("tasks.0.names_sha256", None, "fingerprint is not that of the tasks"),
    ("tasks.0.names_sha256.val", "0" * 64, "fingerprint is not that of the tasks"),
    ("tasks.0.names_sha256.test", "0" * 64, "tasks.0.names_sha256.test"),
    ("tasks.0.shards.0.name", "train-000001.tar", "tasks.0: shards are not train-000000.tar and"),
    ("tasks.0.shards.0.name", "other-000000.tar", "tasks.0: shards are not train-000000.tar and"),
    ("tasks.0.shards.0.name", "../x.tar", "tasks.0.shards.0.name: "),
    ("tasks.0.shards.0.samples", -1, "tasks.0.shards.0.samples: "),
    ("tasks.0.shards.0.bytes", -1, "tasks.0.shards.0.bytes: "),
    ("tasks.0.shards.0.bytes", 2**60, "tasks.0.shards.0.bytes: "),
    ("tasks.0.shards.0.sha256", "x", "tasks.0.shards.0.sha256: "),
    ("tasks.0.shards.0.sha256", "0" * 64, "fingerprint is not that of the tasks"),
]

FAULTS_OF_V1 = [
    ("classes", ["a", "b"], "tasks.1.classes names class 3, there are 2"),
    ("classes", ["a", "b", "b", "d"], "classes has 'b' twice"),
    ("classes", [], "classes: "),
    ("classes.1", "", "classes.1: "),
    ("classes.1", "\x1b[31mred", "classes.1: holds control characters"),
    ("classes.1", "x" * 5000, "classes.1: "),
    ("source", "folder:\0", "source: holds control characters"),
    ("tasks_wanted", 3, "tasks_wanted is 3, but there are 2 tasks"),
    ("tasks_wanted", -1, "tasks_wanted: "),
    ("labels", float("nan"), "labels: "),
    ("val_fraction", 1, "val_fraction: "),
    ("seed", -1, "seed: "),
    ("seed", True, "seed: "),
    ("resize", 0, "resize: "),
    ("new", 1, "new: "),
    ("fingerprint", "0" * 64, "fingerprint: "),
    ("counts.train", 17, "counts.train is 17, but the tasks have 16"),
    ("counts.val", -4, "counts.val: "),
    ("counts.bad", 0, "counts.bad is 0, but the tasks have 1"),
    ("counts.ignored", -1, "counts.ignored: "),
    ("counts.ignored", 10**13, "counts.ignored: "),
    ("bad.0.id", -1, "bad.0.id: "),
    ("bad", [], "counts.bad is 1, but the tasks have 0"),
    ("tasks", [], "tasks: "),
    ("tasks.0.folder", "task-01", "tasks.folder has 'task-01' twice"),
    ("tasks.0.classes", [1, 4], "tasks.0.classes names class 4, there are 4"),
    ("tasks.0.train", 9, "tasks.0: train is 9, but its shards hold 8"),
    ("tasks.0.index_sha256", {"train": "0" * 64}, "tasks.0: index_sha256.val is missing"),
    ("tasks.0.shards.0.name", "../x.tar", "tasks.0.shards.0.name: "),
]


def test_as_prepared_it_is_whole(stream):
    assert verify(stream.root, progress=False).problems == []


@pytest.mark.parametrize(("path", "value", "words"), FAULTS)
def test_what_is_out_of_bounds_or_does_not_agree_is_named(stream, written, path, value, words):
    content = content_of(stream)
    put(content, path, value)
    refused(written(json.dumps(content).encode()), words, "indices" not in words)


@pytest.mark.parametrize(("path", "value", "words"), FAULTS_OF_V1)
def test_what_is_wrong_in_format_1_is_named(stream, written, path, value, words):
    content = content_of_v1(stream)
    put(content, path, value)
    refused(written(json.dumps(content).encode()), words)


def refused(root: Path, words: str, when_opened: bool = True) -> None:
    """By `verify`, and unless reading the indices shows it, by whoever opens the stream."""
    (problem,) = verify(root, progress=False).problems
    assert words in problem
    if not when_opened:
        return
    with pytest.raises(DataError, match=r"stream\.json: ") as error:
        Stream.open(root)
    assert words in str(error.value)
    assert len(str(error.value)) < 1000
    assert "\x1b" not in str(error.value)


def test_format_1_is_read_as_it_was(stream, written):
    raw = json.dumps(content_of_v1(stream)).encode()
    root = written(raw)
    assert verify(root, progress=False).problems == []
    read = Stream.open(root)
    fingerprint = hashlib.sha256(raw).hexdigest()
    assert read.fingerprint == fingerprint
    assert all(read.begins_with(fingerprint, tasks) for tasks in (1, 2))
    assert (read.classes, read.seed, read.scenario) == (stream.classes, 5, "class")
    assert [read.known_classes(task) for task in (0, 1)] == [4, 4]
    assert [read.unseen(task) for task in (0, 1)] == [(2, 3), ()]
    assert read.manifest.counts == stream.manifest.counts


def test_additions_are_of_one_seed_and_one_size_of_shards(stream, written):
    content = content_of(stream)
    one = content["additions"][0] | {"tasks": 1, "bad": []}
    one["settings"] = one["settings"] | {"tasks_wanted": 1}
    bad = content["additions"][0]["bad"]
    content["additions"] = [one | {"bad": bad}, one]
    assert verify(written(json.dumps(content).encode()), progress=False).problems == []
    for key in ("seed", "shard_size"):
        other = one | {"settings": one["settings"] | {key: 77}}
        content["additions"] = [one | {"bad": bad}, other]
        with pytest.raises(ValueError, match=f"additions have 2 values of {key}"):
            StreamManifest.model_validate(content)


def test_markup_is_a_name_like_any_other(stream, written):
    names = ["[/]", "[bold red]x[/]", "[link=http://x]l[/link]", "<b>"]
    content = content_of(stream)
    content["tasks"][0] |= {"name": "[/]", "new_classes": names[:2]}
    content["tasks"][1]["new_classes"] = names[2:]
    root = written(signed(content))
    assert verify(root, progress=False).problems == []
    assert Stream.open(root).classes == names


def signed(content: dict) -> bytes:
    """With the fingerprint of what it says."""
    tasks = [TaskInfo.model_validate(task) for task in content["tasks"]]
    first = Settings.model_validate(content["additions"][0]["settings"])
    return json.dumps(content | {"fingerprint": chain(tasks, first)[-1].fingerprint}).encode()


def test_torchvision_names_two_of_imagenets_classes_alike(stream, written):
    content = content_of(stream)
    content["tasks"][0]["new_classes"] = content["tasks"][1]["new_classes"] = ["crane", "b"]
    content["additions"][0]["settings"]["source"] = "torchvision:ImageNet:x"
    assert Stream.open(written(signed(content))).num_classes == 4


def test_a_million_faults_are_a_few_words(stream, written):
    content = content_of_v1(stream) | {"classes": [0] * 100_000, "\x1b" + "x" * 100_000: 1}
    problem = verify(written(json.dumps(content).encode()), progress=False).problems[0]
    assert "classes.0: " in problem
    assert "more" in problem
    assert len(problem) < 5000


def told(manifest) -> dict:
    """All that a manifest says of the stream's files and their meaning: without what only tells how
    it was made and leaves no trace in what was made."""
    content = manifest.model_dump()
    for addition in content["additions"]:
        for key in ("source", "scenario", "tasks_wanted", "domain_order", "classes", "name"):
            del addition["settings"][key]
        del addition["ignored"], addition["source_stamp"]
        for image in addition["bad"]:
            del image["name"], image["reason"]
    return content


def fuzz(stream: Stream, root: Path, count: int) -> None:
    """Whatever is called whole is the same stream: same files, labels, classes and settings that
    matter. It opens, with as many classes, and every image is what it was."""
    intact = told(stream.manifest)
    splits = [stream.split(task, part) for task in range(len(stream)) for part in PARTS]
    images = [split.read_all(range(len(split))) for split in splits]
    whole = 0
    for what, data in mutations((stream.root / "stream.json").read_bytes(), count):
        rewritten(root, stream, data)
        report = survive(lambda: verify(root, progress=False))
        opened = survive(lambda: Stream.open(root))
        assert not isinstance(report, KaizenError), what
        if report.problems:
            continue
        whole += 1
        assert isinstance(opened, Stream), what
        assert told(opened.manifest) == intact, what
        assert opened.classes == stream.classes, what
        assert opened.manifest.chain == stream.manifest.chain, what
        again = [opened.split(task, part) for task in range(len(stream)) for part in PARTS]
        assert [split.read_all(range(len(split))) for split in again] == images, what
    assert whole < count / 3


STREAMS = ["stream", "grown", "grown_from_v1"]


@pytest.mark.parametrize("name", STREAMS)
def test_no_mutation_of_it_is_another_stream(request, tmp_path, name):
    fuzz(request.getfixturevalue(name), tmp_path / "mutated", QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_no_mutation_of_it_is_another_stream_at_length(request, tmp_path, name):
    fuzz(request.getfixturevalue(name), tmp_path / "mutated", CASES)
