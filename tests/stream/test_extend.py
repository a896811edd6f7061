"""A stream that grew is the stream that was there from the start, byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.stream.manifest import Stream, load_manifest
from kaizen_dist.stream.manifest_entries import PARTS, Addition, Settings, TaskInfo
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.names import read_names
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.verify import verify

CLASSES = "abcdef"
quiet = {"progress": False}


def add_images(root: Path, count: int, first: int = 0) -> None:
    """Pictures in a folder, another one for every number and folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        draw = np.random.default_rng([number, *root.name.encode()])
        pixels = draw.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")


def contents(stream: Stream) -> tuple[str, dict[str, bytes]]:
    """The fingerprint and every file of every task, and that there is nothing else."""
    files = {str(p.relative_to(stream.root)): p for p in stream.root.rglob("*") if p.is_file()}
    assert all(name == "stream.json" or name.startswith("task-") for name in files)
    return stream.fingerprint, {
        name: path.read_bytes() for name, path in files.items() if name != "stream.json"
    }


def whole(stream: Stream) -> bool:
    return verify(stream.root, decode=True, **quiet).problems == []


# ---- the promise ------------------------------------------------------------------------


@dataclass
class Growth:
    """Classes by task, the tasks by addition, and the settings."""

    additions: list[list[list[str]]]
    options: dict
    own_val: bool
    broken: bool

    @property
    def tasks(self) -> list[list[str]]:
        return [task for addition in self.additions for task in addition]


def of_the_stream(draw) -> dict:
    return {
        "seed": draw(st.integers(0, 2**40)),
        "shard_size": draw(st.sampled_from([2, 3, 100])),
        "labels": draw(st.sampled_from([0.0, 0.4, 1.0])),
        "val_fraction": draw(st.sampled_from([0.0, 0.2, 0.5])),
        "resize": draw(st.sampled_from([None, None, 5])),
        "max_bad": 1.0,
        **quiet,
    }


@st.composite
def growths(draw) -> Growth:
    classes = draw(st.permutations(CLASSES))[: draw(st.integers(2, 6))]
    additions: list[list[list[str]]] = []
    while classes:
        own = classes[: draw(st.integers(1, len(classes)))]
        classes = classes[len(own) :]
        parts = np.array_split(np.array(own, object), draw(st.integers(1, len(own))))
        additions.append([part.tolist() for part in parts])
    return Growth(additions, of_the_stream(draw), draw(st.booleans()), draw(st.booleans()))


def as_begun(options: dict) -> dict:
    """What `extend` has to be told of these settings."""
    return {key: options[key] for key in ("max_bad", "progress")}


@given(growths())
@settings(max_examples=25, deadline=None)
def test_tasks_added_one_by_one_are_those_prepared_at_once(growth):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for n, name in enumerate(CLASSES):
            add_images(root / "images/train" / name, 2 + n)
            if growth.own_val:
                add_images(root / "images/test" / name, 1, first=50)
        if growth.broken:
            (root / "images/train" / growth.tasks[0][0] / "broken.png").write_bytes(b"no image")
        source = f"folder:{root / 'images'}"
        at_once = prepare(source, root / "one", classes_per_task=growth.tasks, **growth.options)
        first, *later = growth.additions
        grown = prepare(source, root / "two", classes_per_task=first, **growth.options)
        for tasks in later:
            names = [name for task in tasks for name in task]
            before = grown
            grown = extend(
                root / "two", source, classes=names, tasks=len(tasks), **as_begun(growth.options)
            )
            assert grown.begins_with(before.fingerprint, len(before))
        assert contents(grown) == contents(at_once)
        assert grown.manifest.tasks == at_once.manifest.tasks
        assert grown.classes == at_once.classes == [name for task in growth.tasks for name in task]
        assert grown.manifest.bad == at_once.manifest.bad
        assert len(grown.manifest.bad) == growth.broken
        assert whole(grown)


@st.composite
def domains(draw) -> tuple[list[list[tuple[str, list[str]]]], dict]:
    """The classes of each domain, in the order of additions."""
    names = draw(st.permutations(["photo", "sketch", "paint", "clip"]))
    classes = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True)
    found = [(name, draw(classes)) for name in names[: draw(st.integers(2, 4))]]
    cut = draw(st.integers(1, len(found)))
    return [part for part in (found[:cut], found[cut:]) if part], of_the_stream(draw)


@given(domains())
@settings(max_examples=25, deadline=None)
def test_known_classes_met_again_are_known_as_when_all_was_there(drawn):
    """In a folder that grows: every domain brings classes that others have too."""
    additions, options = drawn
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        source, grown = f"domains:{root / 'images'}", None
        for addition in additions:
            order = [domain for domain, _ in addition]
            for domain, classes in addition:
                for n, name in enumerate(classes):
                    add_images(root / "images" / domain / name, 2 + n)
            if grown is None:
                more = {"domain_order": order, **options}
                grown = prepare(source, root / "two", scenario="domain", **more)
            else:
                more = {"domain_order": order, **as_begun(options)}
                grown = extend(root / "two", source, scenario="domain", **more)
        order = [domain for addition in additions for domain, _ in addition]
        at_once = prepare(source, root / "one", scenario="domain", domain_order=order, **options)
        assert contents(grown) == contents(at_once)
        assert [task.name for task in grown.tasks] == order
        assert len(grown.classes) == len(set(grown.classes))
        came = [classes for addition in additions for _, classes in addition]
        for task, classes in zip(grown.tasks, came, strict=True):
            assert sorted(grown.classes[label] for label in task.classes) == sorted(classes)
        assert whole(grown)


@st.composite
def arrivals(draw) -> tuple[list[dict[str, int]], dict]:
    """How many images of which class come each time."""
    counts = st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 4), min_size=1, max_size=4)
    return draw(st.lists(counts, min_size=2, max_size=4)), of_the_stream(draw)


@given(arrivals())
@settings(max_examples=25, deadline=None)
def test_of_a_folder_that_grew_only_the_new_images_are_taken(drawn):
    """The same as if each time only the new images had been given."""
    times, options = drawn
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        streams: dict[str, Stream] = {}
        for number, counts in enumerate(times):
            for name, count in counts.items():
                add_images(root / f"new-{number}" / name, count, 10 * number)
            shutil.copytree(root / f"new-{number}", root / "all", dirs_exist_ok=True)
            for way, folder in (("grown", "all"), ("parts", f"new-{number}")):
                source = f"folder:{root / folder}"
                streams[way] = (
                    extend(root / way, source, **as_begun(options))
                    if way in streams
                    else prepare(source, root / way, tasks=1, **options)
                )
        assert contents(streams["grown"]) == contents(streams["parts"])
        counted = streams["grown"].manifest.counts
        assert counted.train + counted.val == sum(sum(counts.values()) for counts in times)
        known: set[str] = set()
        for task, counts in zip(streams["grown"].tasks, times, strict=True):
            assert set(task.new_classes) == set(counts) - known
            known |= set(counts)
        assert whole(streams["grown"])


# ---- what has been added already --------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    for n, name in enumerate(CLASSES):
        add_images(tmp_path / "images" / name, 4 + n)
    return tmp_path / "images"


def begun(images: Path, out: Path, classes=(("a",), ("b",)), **options) -> Stream:
    groups = [list(group) for group in classes]
    options = {"shard_size": 3, **quiet, **options}
    return prepare(f"folder:{images}", out, classes_per_task=groups, **options)


def test_what_is_there_already_changes_nothing(images, tmp_path, snapshot, capfd):
    stream = begun(images, tmp_path / "out", [CLASSES])
    before = snapshot(stream.root)
    times = {path: path.stat().st_mtime_ns for path in stream.root.rglob("*") if path.is_file()}
    for options in ({}, {"classes": ["a", "b"]}, {"classes": ["f"], "name": "again"}):
        assert len(extend(stream.root, f"folder:{images}", **quiet, **options)) == 1
        assert "has all images of folder:" in capfd.readouterr().err
    assert snapshot(stream.root) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_one_source_with_its_new_images_and_the_names_of_all(images, tmp_path):
    stream = begun(images, tmp_path / "out")
    add_images(images / "a", 2, first=90)
    extended = extend(stream.root, f"folder:{images}", classes=["a", "c"], name="mixed", **quiet)
    task = extended.tasks[2]
    assert (task.name, task.classes, task.new_classes) == ("mixed", [0, 2], ["c"])
    assert [task.name for task in extended.tasks[:2]] == ["task 0", "task 1"]
    names = {name for part in PARTS for name in read_names(stream.root, task, part)}
    assert names == {"a/090.png", "a/091.png", *(f"c/{n:03d}.png" for n in range(6))}
    for part in PARTS:
        split = extended.split(2, part)
        for row, name in enumerate(read_names(stream.root, task, part)):
            assert split.read(row) == (images / name).read_bytes()
    several = extend(stream.root, f"folder:{images}", tasks=3, name="rest", **quiet)
    assert [task.name for task in several.tasks[3:]] == ["rest 1", "rest 2", "rest 3"]
    assert sorted(several.classes[3:]) == ["d", "e", "f"]
    assert whole(several)


def test_a_bad_image_shifts_no_id(images, tmp_path):
    for name in ("000", "003"):
        (images / f"a/{name}.png").write_bytes(b"<html>")
    stream = begun(images, tmp_path / "out", max_bad=1.0)
    (images / "c/001.png").write_bytes(b"")
    stream = extend(stream.root, f"folder:{images}", classes=["c"], max_bad=1.0, **quiet)
    stream = extend(stream.root, f"folder:{images}", classes=["d"], max_bad=1.0, **quiet)
    assert whole(stream)
    ids = [
        sorted(id for part in PARTS for id in stream.split(task, part).ids.tolist())
        for task in range(4)
    ]
    assert [image.id for image in stream.manifest.bad] == [0, 3, 10]
    assert ids == [[1, 2], list(range(4, 9)), [9, *range(11, 15)], list(range(15, 22))]
    counts = [addition.bad for addition in stream.manifest.additions]
    assert [[image.name for image in bad] for bad in counts] == [
        ["a/000.png", "a/003.png"],
        ["c/001.png"],
        [],
    ]
    # Mended or not, it has been given: it does not come again.
    assert len(extend(stream.root, f"folder:{images}", classes=["a", "c"], **quiet)) == 4


@pytest.mark.parametrize("kind", ["cut", "changed", "json", "gone", "pipe"])
def test_damaged_names_are_an_error_and_no_image_comes_twice(images, tmp_path, kind):
    stream = begun(images, tmp_path / "out")
    path = stream.root / "task-01/train.names.jsonl"
    data = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        changed = data.replace(b"000", b"009").replace(b"001", b"009")
        damaged = {"cut": data[: data.index(b"\n") + 1], "changed": changed, "json": b'{"'}
        path.write_bytes(damaged[kind])
    with pytest.raises(
        DataError, match=r"task-01/train\.names\.jsonl: cannot be read .*restore it"
    ):
        extend(stream.root, f"folder:{images}", **quiet)
    assert not (stream.root / ".prepare").exists()
    assert len(Stream.open(stream.root)) == 2  # a training needs no names
    assert any(str(path) in problem for problem in verify(stream.root, **quiet).problems)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    assert whole(extend(stream.root, f"folder:{images}", **quiet))


def test_other_settings_for_the_new_tasks(images, tmp_path):
    stream = begun(images, tmp_path / "out", labels=1.0, val_fraction=0.2)
    options = {"labels": 0.5, "val_fraction": 0, "resize": 4}
    extended = extend(stream.root, f"folder:{images}", classes=["f"], **options, **quiet)
    task = extended.tasks[2]
    assert (task.train, task.val, task.labelled) == (9, 0, 4)
    assert set(extended.split(2, "train").index["height"]) == {4}
    after = extend(stream.root, f"folder:{images}", classes=["e"], **quiet).tasks[3]
    assert (after.val, after.labelled) == (2, after.train)
    assert whole(Stream.open(stream.root))


def test_tasks_of_another_scenario(images, tmp_path):
    stream = begun(images, tmp_path / "out", [CLASSES], val_fraction=0)
    for name in "ag":
        add_images(tmp_path / "more" / name, 7)
        add_images(tmp_path / "domains/photo" / name, 3)
    more, domains = f"folder:{tmp_path / 'more'}", f"domains:{tmp_path / 'domains'}"
    stream = extend(stream.root, more, scenario="data", tasks=3, **quiet)
    assert [task.train for task in stream.tasks[1:]] == [5, 5, 4]
    assert [task.name for task in stream.tasks[1:]] == ["task 1", "task 2", "task 3"]
    assert [name for task in stream.tasks[1:] for name in task.new_classes] == ["g"]
    stream = extend(stream.root, domains, scenario="domain", **quiet)
    assert (stream.tasks[4].name, stream.tasks[4].classes) == ("photo", [0, 6])
    assert stream.scenario == "mixed"
    assert stream.source == f"folder:{images} and 2 more"
    assert begun(images, stream.root, [CLASSES], val_fraction=0).fingerprint == stream.fingerprint
    assert whole(stream)


# ---- prepare again ----------------------------------------------------------------------


def test_prepare_of_a_stream_that_has_grown_changes_nothing(images, tmp_path, snapshot):
    stream = begun(images, tmp_path / "out")
    extend(stream.root, f"folder:{images}", classes=["c"], **quiet)
    before = snapshot(stream.root)
    assert len(begun(images, stream.root)) == 3
    # New images, and tasks made of them: the stream knows this source as it is now.
    add_images(images / "g", 3)
    with pytest.raises(UsageError, match="has changed since"):
        begun(images, stream.root)
    assert snapshot(stream.root) == before
    extend(stream.root, f"folder:{images}", classes=["g"], **quiet)
    assert len(begun(images, stream.root)) == 4


def kaizen(*arguments: object) -> tuple[int, str]:
    """The exit code of a command, and its error message in one line."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, KaizenError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def test_the_commands(images, tmp_path):
    out, source = tmp_path / "out", f"folder:{images}"
    first = ("prepare", source, "--out", out, "--classes-per-task", "a,b;c")
    code, said = kaizen(*first)
    assert (code, "2 tasks, 3 classes" in said) == (0, True)
    code, said = kaizen("extend", out, source, "--classes", "d,e", "--name", "new")
    assert code == 0
    assert "training images of d, e; new classes: 2" in said
    assert "3 tasks, 5 classes" in said
    add_images(images / "g", 3)
    code, said = kaizen(*first)
    assert code == 2
    assert f"`kaizen-dist extend {out} {source}` adds what is new" in said
    code, said = kaizen("extend", out, source)
    assert (code, "4 tasks, 7 classes" in said) == (0, True)
    assert kaizen(*first)[0] == 0
    assert kaizen("verify", out, "--decode")[0] == 0


def test_requests_that_cannot_be_met_name_what_is_wrong(images, tmp_path, snapshot):
    source, out = f"folder:{images}", tmp_path / "out"
    stream = begun(images, out)
    (tmp_path / "unfinished/.prepare").mkdir(parents=True)
    before = snapshot(tmp_path)
    for code, words, arguments in (
        (3, f"there is no stream {tmp_path / 'none'}", (tmp_path / "none", source)),
        (3, "is not a stream: it holds no stream.json", (images, source)),
        (3, "is unfinished", (tmp_path / "unfinished", source)),
        (3, "give a folder", ("http://example.org/stream", source)),
        (3, "there is no", (out, f"folder:{tmp_path / 'nowhere'}")),
        (2, "is no source", (out, "folder")),
        (2, "has no class lion, tiger", (out, source, "--classes", "c,lion,tiger")),
        (2, "name 'c' twice", (out, source, "--classes", "c,d,c")),
        (2, "3 tasks of 2 classes", (out, source, "--classes", "c,d", "--tasks", 3)),
        (2, "9 tasks, but the source has only 4 classes", (out, source, "--tasks", 9)),
        (2, "has no domains", (out, source, "--scenario", "domain")),
        (2, "scenario: ", (out, source, "--scenario", "other")),
        (2, "order of domains goes with", (out, source, "--domain-order", "a,b")),
        (2, "name: holds control characters", (out, source, "--name", "a\nb")),
        (2, "tasks: ", (out, source, "--tasks", 0)),
        (2, "labels: ", (out, source, "--labels", 2)),
        (2, "workers must be at least 1", (out, source, "--workers", 0)),
        (3, "has no training images", (out, source, "--classes", "b,c", "--tasks", 2)),
    ):
        found, said = kaizen("extend", *arguments)
        assert (found, words in said) == (code, True), (arguments, found, said)
        assert snapshot(tmp_path) == before, arguments
    with pytest.raises(UsageError, match="scenario class"):
        prepare(source, out, classes_per_task=[["a"]], scenario="data", **quiet)
    with pytest.raises(UsageError, match="scenario class"):
        prepare(source, out, classes_per_task=[["a"]], tasks=2, **quiet)
    assert Stream.open(out).fingerprint == stream.fingerprint


# ---- interrupted ------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from kaizen_dist.stream.prepare import extend

root, source, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
events = []

def watch(event, arguments):
    # Whatever changes a file is told here before it happens.
    if event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"):
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
        return
    events.append(f"{event} {Path(str(arguments[-1 if event == 'os.rename' else 0])).name}")
    if event == "os.rename":
        events[-1] = f"{event} {Path(str(arguments[1])).name}"
    if len(events) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
extend(root, source, classes=["c", "d", "e"], tasks=2, progress=False)
print("\\n".join(events))
"""


@dataclass
class Extension:
    """An extension of two tasks, which a process can be killed in."""

    base: Stream
    source: str
    finished: Stream
    events: list[str]
    """What the process does to files, in its order."""

    def killed_at(self, root: Path, event: int) -> Iterator[None]:
        """Yields while it runs, until it is killed just before its `event` (the first is 1)."""
        command = [sys.executable, "-c", KILLED, str(root), self.source, str(event)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                yield
        assert process.returncode == -signal.SIGKILL


@pytest.fixture
def extension(images, tmp_path) -> Extension:
    base = begun(images, tmp_path / "base")
    root = Path(shutil.copytree(base.root, tmp_path / "finished"))
    command = [sys.executable, "-c", KILLED, str(root), f"folder:{images}", "0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    events = done.stdout.splitlines()
    return Extension(base, f"folder:{images}", Stream.open(root), events)


def check_kill(extension: Extension, root: Path, event: int, snapshot) -> bool:
    """Kill, look, ask for something else, finish; whether it was killed before the commit."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(extension.base.root, root)
    fingerprints = (extension.base.fingerprint, extension.finished.fingerprint)
    seen = [Stream.open(root).fingerprint for _ in extension.killed_at(root, event)]
    seen.append(Stream.open(root).fingerprint)
    commit = extension.events.index("os.rename stream.json") + 1
    expected = fingerprints[event > commit]
    assert seen[-1] == expected
    assert set(seen) <= set(fingerprints)
    readable = Stream.open(root)
    assert len(readable) == (4 if event > commit else 2)
    assert whole(readable)
    noted = extension.events.index("os.rename settings.json") + 1
    if noted < event <= commit:
        left = snapshot(root)
        other = r"begun and not finished: .*classes is \[\['c', 'd'\], \['e'\]\], not \[\['f'\]\]"
        with pytest.raises(UsageError, match=other):
            extend(root, extension.source, classes=["f"], tasks=1, **quiet)
        begun(Path(extension.source.removeprefix("folder:")), root)  # `prepare` has nothing to do
        assert snapshot(root) == {k: v for k, v in left.items() if not k.endswith(".tmp")}
    again = partial(extend, root, extension.source, classes=["c", "d", "e"], tasks=2, **quiet)
    assert again().fingerprint == extension.finished.fingerprint
    assert snapshot(root) == snapshot(extension.finished.root)
    return event <= commit


MANY = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=MANY)])
def test_a_killed_extension_is_finished_to_the_same_bytes(extension, tmp_path, snapshot, kills):
    commit = extension.events.index("os.rename stream.json") + 1
    evenly = np.linspace(1, len(extension.events), kills).astype(int).tolist()
    before = [
        check_kill(extension, tmp_path / "out", event, snapshot)
        for event in sorted({*evenly, commit, commit + 1})
    ]
    assert before == sorted(before, reverse=True)
    assert 2 <= sum(before) < len(before)
    assert contents(extension.finished)[0] == extension.finished.fingerprint


def test_a_source_that_changed_since_its_tasks_were_begun(extension, images, tmp_path):
    out = Path(shutil.copytree(extension.base.root, tmp_path / "out"))
    commit = extension.events.index("os.rename stream.json") + 1
    for _ in extension.killed_at(out, commit):
        pass
    add_images(images / "c", 1, first=80)
    options = {"classes": ["c", "d", "e"], "tasks": 2, **quiet}
    with pytest.raises(DataError, match=r"has changed since .*: delete \S+/out/\.prepare to start"):
        extend(out, extension.source, **options)
    assert Stream.open(out).fingerprint == extension.base.fingerprint
    shutil.rmtree(out / ".prepare")
    anew = extend(out, extension.source, **options)
    assert anew.manifest.counts.train + anew.manifest.counts.val == 4 + 5 + 6 + 7 + 8 + 1
    assert whole(anew)


def test_what_is_given_up_leaves_no_trace(extension, tmp_path, snapshot):
    """Another extension, after a killed one whose work folder was deleted as the message says."""
    out = Path(shutil.copytree(extension.base.root, tmp_path / "out"))
    commit = extension.events.index("os.rename stream.json") + 1
    for _ in extension.killed_at(out, commit):
        pass
    shutil.rmtree(out / ".prepare")
    stream = extend(out, extension.source, classes=["f"], **quiet)
    other = extend(extension.base.root, extension.source, classes=["f"], **quiet)
    assert contents(stream) == contents(other)


def test_prepare_beside_a_running_extension_leaves_it_alone(images, tmp_path, snapshot):
    from kaizen_dist.stream.work_folder import work_folder

    stream = begun(images, tmp_path / "out")
    with work_folder(stream.root) as work:
        (work / "source.tar").touch()
        begun_again = begun(images, stream.root)
        assert begun_again.fingerprint == stream.fingerprint
        assert (work / "source.tar").exists()
        with pytest.raises(UsageError, match="another process is preparing"):
            extend(stream.root, f"folder:{images}", **quiet)
    begun(images, stream.root)
    assert not (stream.root / ".prepare").exists()


# ---- streams of format 1 ----------------------------------------------------------------


@pytest.fixture
def older(tmp_path) -> Stream:
    """A stream of format 1: six digits in three tasks, as commit 5bd48c9 wrote it."""
    archive = Path(__file__).parents[1] / "fixtures" / "5bd48c9.tar.gz"
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith("stream/")]
        tar.extractall(tmp_path / "older", members, filter="data")
    return Stream.open(tmp_path / "older/stream")


def test_a_stream_of_format_1_can_be_extended(older, images, tmp_path):
    add_images(images / "digit3", 5)
    once = extend(older.root, f"folder:{images}", classes=["digit3", "b"], **quiet)
    assert json.loads((older.root / "stream.json").read_bytes())["format_version"] == 2
    assert (len(once), once.classes) == (4, [*older.classes, "b"])
    assert once.tasks[:3] == older.tasks
    assert (once.tasks[3].classes, once.tasks[3].new_classes) == ([3, 6], ["b"])
    for tasks in (1, 2, 3):
        assert once.begins_with(older.fingerprint, tasks)
    assert once.fingerprint != older.fingerprint
    assert not once.begins_with(older.fingerprint, 4)
    twice = extend(older.root, f"folder:{images}", classes=["a", "b"], **quiet)
    assert twice.begins_with(once.fingerprint, 4)
    assert twice.begins_with(older.fingerprint, 3)
    assert twice.tasks[4].new_classes == ["a"]
    assert [twice.known_classes(task) for task in range(5)] == [6, 6, 6, 7, 8]
    assert whole(twice)
    ids = [id for t in (3, 4) for part in PARTS for id in twice.split(t, part).ids]
    assert min(ids) == 120
    counts = twice.manifest.counts
    assert counts.train + counts.val == 120 + 5 + 5 + 4


def test_old_tasks_of_an_extended_stream_of_format_1_are_bound_too(older, images):
    extend(older.root, f"folder:{images}", classes=["a"], **quiet)
    path = older.root / "stream.json"
    written = json.loads(path.read_bytes())
    for key, value in (("labelled", 23), ("classes", [5, 1]), ("name", "x")):
        content = json.loads(json.dumps(written))
        content["tasks"][0][key] = value
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match="fingerprint is not that of the tasks"):
            Stream.open(older.root)
    written["origin"]["classes"][0] = "other"
    path.write_text(json.dumps(written))
    with pytest.raises(DataError, match="fingerprint is not that of the tasks"):
        Stream.open(older.root)


def test_of_its_own_source_a_stream_of_format_1_takes_new_classes_only(older, images):
    """It has no names of its images, by which to tell which of them are new."""
    content = json.loads((older.root / "stream.json").read_bytes())
    content["source"] = f"folder:{images}"
    (older.root / "stream.json").write_text(json.dumps(content))
    for label in older.classes:
        add_images(images / label, 2)
    extended = extend(older.root, f"folder:{images}", **quiet)
    assert extended.tasks[3].new_classes == list(CLASSES)
    assert len(extended.tasks[3].classes) == len(CLASSES)
    assert len(extend(older.root, f"folder:{images}", **quiet)) == 4


# ---- large ------------------------------------------------------------------------------


def large(tasks: int, classes: int) -> StreamManifest:
    """A manifest of a stream that nobody has."""
    made = []
    for task in range(tasks):
        labels = range(task * classes // tasks, (task + 1) * classes // tasks)
        shard = {"samples": 1000, "bytes": 1 << 20, "sha256": "0" * 64}
        made.append(
            TaskInfo(
                folder=f"task-{task:02d}",
                name=f"task {task}",
                classes=list(labels),
                new_classes=[f"class {label}" for label in labels],
                train=1000,
                val=1000,
                labelled=1000,
                shards=[{"name": f"{part}-000000.tar", **shard} for part in PARTS],
                index_sha256=dict.fromkeys(PARTS, "0" * 64),
                names_sha256=dict.fromkeys(PARTS, "0" * 64),
            )
        )
    one = Settings(source="made up", tasks_wanted=1)
    additions = [Addition(settings=one, tasks=1, ignored=0) for _ in made]
    return StreamManifest.of(additions, made)


def test_a_thousand_tasks_and_100_000_classes_open(tmp_path):
    manifest = large(1000, 100_000)
    (tmp_path / "stream.json").write_text(manifest.model_dump_json(indent=1))
    read = load_manifest(tmp_path)
    assert (len(read.tasks), len(read.classes), len(read.chain)) == (1000, 100_000, 1001)
    assert read.class_counts[-1] == 100_000
    assert read == manifest
