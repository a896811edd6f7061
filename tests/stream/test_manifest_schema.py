"""What a stream.json may not say: refused by field, by whoever opens the stream."""

import json

import numpy as np
import pytest
from fuzzing import CASES, mutations, survive
from PIL import Image

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.verify import verify

QUICK = 60


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    """Two tasks of two classes in several shards, one image left out."""
    root = tmp_path_factory.mktemp("schema")
    draw = np.random.default_rng(0)
    for label in "abcd":
        for n in range(5):
            path = root / "images" / ("train" if n else "test") / label / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    (root / "images/train/a/broken.png").write_bytes(b"no image")
    options = {"tasks": 2, "shard_size": 3, "max_bad": 1.0, "progress": False}
    return prepare(f"folder:{root / 'images'}", root / "stream", **options)


@pytest.fixture
def written(stream, tmp_path):
    """written(data): the stream with other bytes as its stream.json."""
    root = tmp_path / "stream"
    root.mkdir()
    for task in stream.tasks:
        (root / task.folder).symlink_to(stream.root / task.folder)

    def write(data: bytes):
        (root / "stream.json").write_bytes(data)
        return root

    return write


def content_of(stream: Stream) -> dict:
    return json.loads((stream.root / "stream.json").read_bytes())


def put(content: dict, path: str, value: object) -> None:
    *holders, last = path.split(".")
    for key in holders:
        content = content[int(key) if isinstance(content, list) else key]
    content[int(last) if isinstance(content, list) else last] = value


FAULTS = [
    # (what is changed, to what, what the error names)
    ("classes", ["a", "b"], "tasks.0.classes names class 3, there are 2"),
    ("classes", ["a", "b", "b", "d"], "classes has 'b' twice"),
    ("classes", [], "classes: "),
    ("classes.1", "", "classes.1: "),
    ("classes.1", "\x1b[31mred", "classes.1: holds control characters"),
    ("classes.1", "two\nlines", "classes.1: holds control characters"),
    ("classes.1", "\ud800", "half a surrogate pair"),
    ("classes.1", 1, "classes.1: "),
    ("classes.1", "x" * 5000, "classes.1: "),
    ("source", "folder:\0", "source: holds control characters"),
    ("scenario", "data", "tasks.classes are not in order, in the scenario data"),
    ("domain_order", ["task 0", "task 1"], "domain_order goes with the scenario domain"),
    ("tasks_wanted", 3, "tasks_wanted is 3, but there are 2 tasks"),
    ("tasks_wanted", -1, "tasks_wanted: "),
    ("shard_size", 2, "shard_size is 2, but the shards have other sizes"),
    ("shard_size", 5, "shard_size is 5, but the shards have other sizes"),
    ("labels", 0, "labels is 0, but counts.labelled is 16"),
    ("labels", float("nan"), "labels: "),
    ("val_fraction", 1, "val_fraction: "),
    ("seed", -1, "seed: "),
    ("seed", 2**63, "seed: "),
    ("seed", True, "seed: "),
    ("seed", "5", "seed: "),
    ("resize", 0, "resize: "),
    ("new", 1, "new: "),
    ("counts.train", 17, "counts.train is 17, but the tasks have 16"),
    ("counts.val", -4, "counts.val: "),
    ("counts.bad", 0, "counts.bad is 0, but 1 are listed"),
    ("counts.ignored", -1, "counts.ignored: "),
    ("counts.ignored", 10**13, "counts.ignored: "),
    ("bad.0.id", -1, "bad.0.id: "),
    ("bad", [], "counts.bad is 1, but 0 are listed"),
    ("tasks", [], "tasks: "),
    ("tasks.0.folder", "task-01", "tasks.folder has 'task-01' twice"),
    ("tasks.0.folder", "..", "tasks.0.folder: "),
    ("tasks.0.name", "task 1", "tasks.name has 'task 1' twice"),
    ("tasks.0.classes", [], "tasks.0.classes: "),
    ("tasks.0.classes", [3, 0], "class 0 is in two tasks"),
    ("tasks.0.classes", [3, 3], "classes name 3 twice"),
    ("tasks.0.classes", [3, -1], "tasks.0.classes.1: "),
    ("tasks.0.classes", [3, 4], "tasks.0.classes names class 4, there are 4"),
    ("tasks.0.train", 9, "tasks.0: train is 9, but its shards hold 8"),
    ("tasks.0.train", 0, "tasks.0.train: "),
    ("tasks.0.val", 1, "tasks.0: val is 1, but its shards hold 2"),
    ("tasks.0.labelled", 9, "tasks.0: labelled is 9 of 8 images"),
    ("tasks.0.index_sha256", {"train": "0" * 64}, "tasks.0: index_sha256.val is missing"),
    ("tasks.0.index_sha256.val", "0" * 63, "tasks.0.index_sha256.val: "),
    ("tasks.0.index_sha256.test", "0" * 64, "tasks.0.index_sha256.test"),
    ("tasks.0.shards.0.name", "train-000001.tar", "tasks.0: shards are not train-000000.tar and"),
    ("tasks.0.shards.0.name", "other-000000.tar", "tasks.0: shards are not train-000000.tar and"),
    ("tasks.0.shards.0.name", "../x.tar", "tasks.0.shards.0.name: "),
    ("tasks.0.shards.0.samples", -1, "tasks.0.shards.0.samples: "),
    ("tasks.0.shards.0.bytes", -1, "tasks.0.shards.0.bytes: "),
    ("tasks.0.shards.0.bytes", 2**60, "tasks.0.shards.0.bytes: "),
    ("tasks.0.shards.0.sha256", "x", "tasks.0.shards.0.sha256: "),
]


def test_as_prepared_it_is_whole(stream):
    assert verify(stream.root, progress=False).problems == []


@pytest.mark.parametrize(("path", "value", "words"), FAULTS)
def test_what_is_out_of_bounds_or_does_not_agree_is_named(stream, written, path, value, words):
    content = content_of(stream)
    put(content, path, value)
    root = written(json.dumps(content).encode())
    (problem,) = verify(root, progress=False).problems
    assert words in problem
    with pytest.raises(DataError, match=r"stream\.json: ") as error:
        Stream.open(root)
    assert words in str(error.value)
    assert len(str(error.value)) < 1000
    assert "\x1b" not in str(error.value)


def test_markup_is_a_name_like_any_other(stream, written):
    content = content_of(stream)
    content["classes"] = ["[/]", "[bold red]x[/]", "[link=http://x]l[/link]", "<b>"]
    content["tasks"][0]["name"] = "[/]"
    root = written(json.dumps(content).encode())
    assert verify(root, progress=False).problems == []
    assert Stream.open(root).classes == content["classes"]


def test_torchvision_names_two_of_imagenets_classes_alike(stream, written):
    content = content_of(stream) | {"classes": ["crane", "b", "crane", "d"]}
    root = written(json.dumps(content | {"source": "torchvision:ImageNet:x"}).encode())
    assert Stream.open(root).num_classes == 4


def test_a_million_faults_are_a_few_words(stream, written):
    content = content_of(stream) | {"classes": [0] * 100_000, "\x1b" + "x" * 100_000: 1}
    problem = verify(written(json.dumps(content).encode()), progress=False).problems[0]
    assert "classes.0: " in problem
    assert "more" in problem
    assert len(problem) < 5000


def told(manifest) -> dict:
    """All that a manifest says of the stream's files and their meaning: without the names, and
    without what only tells how it was made and leaves no trace in what was made."""
    content = manifest.model_dump()
    for key in ("source", "val_fraction", "resize", "tasks_wanted", "classes"):
        del content[key]
    content["counts"].pop("ignored")
    for task in content["tasks"]:
        del task["name"]
    for image in content["bad"]:
        del image["name"], image["reason"]
    return content


def fuzz(stream: Stream, written, count: int) -> None:
    """Whatever is called whole is the same stream: same files, labels, classes and settings that
    matter. It opens, with as many classes, and every image is what it was."""
    intact = told(stream.manifest)
    splits = [stream.split(task, part) for task in (0, 1) for part in ("train", "val")]
    images = [split.read_all(range(len(split))) for split in splits]
    whole = 0
    for what, data in mutations((stream.root / "stream.json").read_bytes(), count):
        root = written(data)
        report = survive(lambda root=root: verify(root, progress=False))
        opened = survive(lambda root=root: Stream.open(root))
        assert not isinstance(report, KaizenError), what
        if report.problems:
            continue
        whole += 1
        assert isinstance(opened, Stream), what
        assert told(opened.manifest) == intact, what
        assert opened.num_classes == stream.num_classes, what
        again = [opened.split(task, part) for task in (0, 1) for part in ("train", "val")]
        assert [split.read_all(range(len(split))) for split in again] == images, what
    assert whole < count / 3


def test_no_mutation_of_it_is_another_stream(stream, written):
    fuzz(stream, written, QUICK)


@pytest.mark.slow
def test_no_mutation_of_it_is_another_stream_at_length(stream, written):
    fuzz(stream, written, CASES)
