"""Images without a label: whole sources of them, and some among others."""

import numpy as np
import pytest

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.manifest_entries import Settings
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.scenario import plan
from kaizen_dist.stream.sources import open_source
from kaizen_dist.stream.sources.base import Source
from kaizen_dist.stream.verify import verify


class NoImages:
    def read(self, i: int) -> bytes:
        raise AssertionError

    def name_of(self, i: int) -> str:
        return str(i)


def source_of(labels, domains_of=None, tasks_of=None) -> Source:
    labels = np.array(labels)
    none = np.full(len(labels), -1)
    return Source(
        spec="test",
        classes=[f"class {n}" for n in range(labels.max() + 1)],
        domains=["a", "b"] if domains_of is not None else [],
        labels=labels,
        domains_of=none if domains_of is None else np.array(domains_of),
        is_val=np.zeros(len(labels), bool),
        images=NoImages(),
        tasks=["first", "second", "third"] if tasks_of is not None else [],
        tasks_of=None if tasks_of is None else np.array(tasks_of),
    )


def cut(source, scenario="class", tasks=2, **given):
    return plan(source, Settings(source="test", scenario=scenario, tasks_wanted=tasks, **given))


# ---- the source -------------------------------------------------------------------------


def test_images_of_a_folder_at_any_depth(make_folder, tmp_path):
    root = make_folder({"b/c": 2, "a": 1, ".": 1, ".hidden": 3})
    (root / "a/x.HEIC").touch()
    (root / "notes.txt").touch()
    source = open_source(f"images:{root}", tmp_path, progress=False)
    names = ["000.jpg", "a/000.jpg", "b/c/000.jpg", "b/c/001.jpg"]
    assert [source.name_of(i) for i in range(len(source))] == names
    assert source.read(1) == (root / "a/000.jpg").read_bytes()
    assert (source.classes, source.labels.tolist(), source.ignored) == ([], [-1] * 4, 3)
    assert source.told == (
        "4 images without labels",
        "images in formats that are not read: 1 heic; convert them, e.g. to jpg",
        "ignored: .hidden, a/x.HEIC, notes.txt",
    )


def test_what_is_ignored_is_counted_by_kind_where_it_is_much(make_folder, tmp_path):
    root = make_folder({"a": 1})
    for n in range(1200):
        (root / f"{n}.txt").touch()
    for name in ("LICENSE", "README", "one.json", "a/.hidden"):
        (root / name).touch()
    source = open_source(f"images:{root}", tmp_path, progress=False)
    assert source.told[1] == (
        "ignored: 1 .json file, 1,200 .txt files, 2 files without ending, a/.hidden"
    )


HALF = """
import numpy as np
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind

class Half(SourceKind):
    usage = "half:Half:x"
    def open(self, spec, argument, work, progress):
        labels, none = np.array([0, 0, -1]), np.full(3, NO_DOMAIN)
        name = "c" if argument == "x" else "c\\n"
        is_val = np.array([False, False, argument == "x"])
        return Source(spec, [name], [], labels, none, is_val, None)
"""


def test_a_source_of_another_package_is_checked(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(HALF)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="half:Half:x: 1 validation images have no label"):
        open_source("half:Half:x", tmp_path, progress=False)
    with pytest.raises(DataError, match="cannot be the name of a class"):
        open_source("half:Half:y", tmp_path, progress=False)


def test_a_folder_without_images(make_folder, tmp_path):
    root = make_folder({"a": 0})
    (root / "a/x.heic").touch()
    with pytest.raises(DataError, match=r"no images in it\n  .*not read: 1 heic"):
        open_source(f"images:{root}", tmp_path, progress=False)


# ---- the plan ---------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "data"])
def test_a_source_without_classes_is_dealt_out_at_random(scenario):
    first, second = cut(source_of([-1] * 101), scenario)
    assert (first.class_of, first.new_classes, len(first.val), len(second.val)) == ({}, [], 0, 0)
    assert sorted([len(first.train), len(second.train)]) == [50, 51]
    both = np.concatenate([first.train.source, second.train.source])
    assert sorted(both) == list(range(101))
    assert not np.array_equal(np.sort(first.train.source), np.arange(len(first.train)))
    assert set(first.train.labels) == {-1}


def test_more_tasks_than_images():
    with pytest.raises(DataError, match="has no training images: ask for fewer tasks"):
        cut(source_of([-1] * 3), tasks=4)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_some_images_without_a_label_are_dealt_out_and_never_validated(share):
    labels = np.arange(300) % 5 - 1  # 60 of each class, 60 without
    tasks = cut(source_of(labels), labels=share)
    for task in tasks:
        of_source = labels[task.train.source]
        assert np.count_nonzero(of_source == -1) == 30
        assert (labels[task.val.source] >= 0).all()
        assert (task.train.labels[of_source == -1] == -1).all()
        kept = task.train.labels >= 0
        assert [task.class_of[own] for own in of_source[kept]] == task.train.labels[kept].tolist()
        assert np.count_nonzero(kept) == pytest.approx(share * np.count_nonzero(of_source >= 0))
        assert len(task.val) == 24  # a fifth of two classes of 60
    assert sorted(number for task in tasks for number in task.class_of.values()) == [0, 1, 2, 3]


def test_classes_that_are_named_take_no_image_without_a_label():
    (task,) = cut(source_of([-1, -1, 0, 0, 1, 1]), tasks=1, classes=[["class 1"]], val_fraction=0)
    assert sorted(task.train.source) == [4, 5]


def test_they_come_with_their_domain():
    source = source_of([-1, 0, -1, 0, 1, 1], domains_of=[0, 0, 1, 1, 1, 0])
    first, second = cut(source, "domain", None, val_fraction=0)
    assert sorted(first.train.source) == [0, 1, 5]
    assert sorted(second.train.source) == [2, 3, 4]


def test_a_source_may_say_which_image_comes_in_which_task():
    source = source_of([0, 1, -1, -1, 1, 0], tasks_of=[2, 0, 0, 1, 2, 2])
    tasks = cut(source, "task", None, val_fraction=0)
    assert [(t.name, sorted(t.train.source), t.class_of) for t in tasks] == [
        ("first", [1, 2], {1: 0}),
        ("second", [3], {}),
        ("third", [0, 4, 5], {0: 1, 1: 0}),
    ]
    with pytest.raises(UsageError, match="4 tasks, but the source has 3 tasks"):
        cut(source, "task", 4)
    with pytest.raises(UsageError, match="has no tasks; give table:FILE"):
        cut(source_of([0, 1]), "task", None)
    with pytest.raises(UsageError, match="1 images of the source test have no domain"):
        cut(source_of([0, 1], domains_of=[0, -1]), "domain", None)


# ---- the stream -------------------------------------------------------------------------


def test_a_stream_without_classes_and_one_that_gets_them_later(make_folder, tmp_path):
    images, classes = make_folder({"x/y": 7}), make_folder({"cat": 5, "dog": 5}, "classes")
    out = tmp_path / "out"
    stream = prepare(f"images:{images}", out, tasks=2, progress=False)
    assert (len(stream), stream.classes, stream.manifest.counts.labelled) == (2, [], 0)
    assert verify(out, decode=True).problems == []
    before = stream.fingerprint
    extend(out, f"folder:{classes}", progress=False)
    extend(out, f"images:{make_folder({'z': 4}, 'more')}", progress=False)
    stream = Stream.open(out)
    assert [task.classes for task in stream.tasks] == [[], [], [0, 1], []]
    assert [task.labelled for task in stream.tasks] == [0, 0, 8, 0]
    assert stream.begins_with(before, 2)
    stream.check_labels()
    assert verify(out, decode=True).problems == []
