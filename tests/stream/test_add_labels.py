"""Labels that come later: the labels of the images, the manifest, and tables good and bad."""

import csv
import json
import random
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream import image_name
from kaizen_dist.stream.add_labels import label, list_images
from kaizen_dist.stream.index import LABELS, joined
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import extend, prepare
from kaizen_dist.stream.verify import verify


@pytest.fixture
def stream(make_folder, tmp_path):
    """Two tasks of two classes."""
    source = make_folder({"train/a": 6, "train/b": 5, "train/c": 4, "train/d": 4, "test/a": 2})
    return prepare(f"folder:{source}", tmp_path / "s", tasks=2, seed=1, progress=False).root


def write(path, rows):
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return path


def labels_of(stream):
    """Label's name by image's name."""
    return {image.name: image.label for image in list_images(stream)}


def test_set_correct_and_take_away(stream, tmp_path):
    before = Stream.open(stream)
    names = labels_of(before)
    mine = [name for name in names if name.startswith("train/a")][:3]
    rows = [
        {"name": mine[0], "label": "b"},
        {"name": mine[1], "label": ""},
        {"name": mine[2], "label": "lynx"},
        {"name": "test/a/000.jpg", "label": "a"},
    ]
    after = label(stream, write(tmp_path / "t.csv", rows), new_classes=True)
    changed = dict(zip(mine, ("b", "", "lynx"), strict=True))
    assert labels_of(after) == names | changed
    assert after.classes == [*before.classes, "lynx"]
    assert after.manifest.counts.labelled == before.manifest.counts.labelled - 1
    assert after.manifest.labels[0].images == 3, "one label was there already"
    number = before.classes.index("a")
    (task,) = [t for t, info in enumerate(before.tasks) if number in info.classes]
    assert after.tasks[task].classes[-1] == len(before.classes)
    assert verify(stream, progress=False).problems == []
    assert labels_of(after.by_labels(0)) == names
    assert after.by_labels(0).tasks == before.tasks


def test_the_last_label_counts_and_the_same_again_changes_nothing(stream, tmp_path):
    name, table = "test/a/000.jpg", tmp_path / "t.csv"
    for wanted in ("b", "c", "d", "d"):
        label(stream, write(table, [{"name": name, "label": wanted}]))
        opened = Stream.open(stream)
        assert labels_of(opened)[name] == wanted
    assert opened.given == 3
    seen = [labels_of(opened.by_labels(given))[name] for given in range(4)]
    assert seen[1:] == ["b", "c", "d"]


def test_a_state_of_the_stream_is_known_by_its_fingerprint(stream, tmp_path, make_folder):
    states = [Stream.open(stream)]
    name = next(iter(labels_of(states[0])))
    states.append(label(stream, write(tmp_path / "t.csv", [{"name": name, "label": "c"}])))
    more = make_folder({"e": 5, "b": 3}, "more")
    states.append(extend(stream, f"folder:{more}", progress=False))
    rows = [{"name": name, "label": "zebra"}]
    states.append(label(stream, write(tmp_path / "t.csv", rows), new_classes=True))
    states.append(extend(stream, f"folder:{make_folder({'f': 5}, 'last')}", progress=False))
    assert len({state.fingerprint for state in states}) == len(states)
    newest = states[-1]
    assert newest.classes[4:] == ["e", "zebra", "f"], "numbered as they came"
    for state in states:
        assert newest.begins_with(state.fingerprint, len(state))
        assert not newest.begins_with(state.fingerprint, len(state) + 1)
    # The second task knows zebra only by the label that came after the third.
    assert newest.known_classes(1) == 6
    assert newest.unseen(1) == (4,)
    assert newest.by_labels(1).known_classes(1) == 4
    content = json.loads((stream / "stream.json").read_text())
    for change in (
        {"labels": []},
        {"labels": content["labels"][::-1]},
        {"labels": [content["labels"][0] | {"after": 3}, content["labels"][1]]},
    ):
        (stream / "stream.json").write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=r"stream\.json: damaged: "):
            Stream.open(stream)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_joined_labels_are_those_of_a_dictionary(data):
    rows = st.dictionaries(st.integers(0, 20), st.integers(-1, 5), max_size=15)
    given = data.draw(st.lists(rows, max_size=5))
    arrays = [np.array(sorted(labels.items()), LABELS) for labels in given]
    expected: dict[int, int] = {}
    for labels in given:
        expected |= labels
    assert joined(arrays).tolist() == sorted(expected.items())


def partly_labelled(tmp_path, save_image, chance):
    """(table with all labels right, one with some missing and some wrong): same images, tasks."""
    right, wrong = [], []
    for number in range(30):
        path, task, split = f"{number}.png", number % 3, "val" if number % 5 == 0 else "train"
        save_image(tmp_path / "t" / path, number)
        row = {"path": path, "label": "abc"[number // 10], "task": str(task), "split": split}
        right.append(row)
        given = chance.choice(["", "a", "b", "c"]) if number % 10 > 5 else row["label"]
        wrong.append(row | {"label": given or ("" if split == "train" else "a")})
    return right, wrong


@pytest.mark.parametrize("seed", range(3))
def test_labelled_late_is_labelled_from_the_start(tmp_path, save_image, seed):
    """The same samples, labels and tasks, whether labels came at once, in one table or in two."""
    right, wrong = partly_labelled(tmp_path, save_image, random.Random(seed))
    tables = [write(tmp_path / "t" / f"{n}.csv", rows) for n, rows in enumerate((right, wrong))]
    whole, late = (
        prepare(f"table:{table}", tmp_path / f"s{n}", progress=False)
        for n, table in enumerate(tables)
    )
    assert whole.classes == late.classes
    given = [{"name": row["path"], "label": row["label"]} for row in right]
    for rows in (given,) if seed == 0 else (given[:17], given[12:]):
        late = label(late.root, write(tmp_path / "labels.csv", rows))
    assert facts(late) == facts(whole)
    for task, info in enumerate(whole.tasks):
        assert late.tasks[task].labelled == info.labelled
        assert sorted(late.tasks[task].classes) == sorted(info.classes)
    assert late.manifest.counts.labelled == whole.manifest.counts.labelled


def facts(stream):
    """Label's name, task and part by image's name: the ids follow the order of the labels."""
    return {image.name: image[2:] for image in list_images(stream)}


BAD = {
    "no label column": ([{"name": "x", "task": "1"}], "needed are label, and id or name"),
    "no name column": ([{"label": "a"}], "needed are label, and id or name"),
    "empty row": ([{"id": "", "name": "", "label": "a"}], "row 2: neither id nor name"),
    "no such name": ([{"name": "q.jpg", "label": "a"}], "row 2: no image is called q.jpg"),
    "no such id": ([{"id": "9999", "label": "a"}], "row 2: no image has this id"),
    "negative id": ([{"id": "-1", "label": "a"}], "row 2: id -1 is no id"),
    "huge id": ([{"id": "9" * 30, "label": "a"}], "is no id"),
    "endless id": ([{"id": "9" * 5000, "label": "a"}], "is no id"),
    "words for an id": ([{"id": "first", "label": "a"}], "row 2: id first is no id"),
    "twice": ([{"id": "1", "label": "a"}] * 2, "row 3: its image is that of an earlier row"),
    "another image's name": (
        [{"id": "3", "name": "test/a/000.jpg", "label": "a"}],
        "row 2: image 3 is not called test/a/000.jpg",
    ),
    "validation": (
        [{"name": "test/a/000.jpg", "label": ""}],
        "row 2: a validation image needs a label",
    ),
    "control": ([{"id": "1", "label": "a\x1b[2J"}], r"can be no class's name"),
    "long": ([{"id": "1", "label": "a" * 5000}], r"can be no class's name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_faulty_table_changes_nothing(stream, tmp_path, snapshot, case):
    rows, words = BAD[case]
    before = snapshot(stream)
    with pytest.raises(DataError) as raised:
        label(stream, write(tmp_path / "t.csv", rows), new_classes=True)
    assert words in str(raised.value).replace("\\x1b", "")
    assert snapshot(stream) == before


def test_all_faults_are_told_at_once(stream, tmp_path):
    rows = [{"name": f"{n}.jpg", "label": "a"} for n in range(60)]
    with pytest.raises(DataError) as raised:
        label(stream, write(tmp_path / "t.csv", rows))
    assert "row 51: no image is called" in str(raised.value)
    assert "and 10 more" in str(raised.value)


def test_new_names_have_to_be_meant(stream, tmp_path, snapshot):
    before = snapshot(stream)
    table = write(tmp_path / "t.csv", [{"id": "1", "label": "lino"}, {"id": "2", "label": "lino"}])
    with pytest.raises(UsageError, match=r"lino \(2\); mend them, or .* --new-classes"):
        label(stream, table)
    assert snapshot(stream) == before


def test_a_name_of_two_images_needs_the_id(stream, tmp_path, make_folder):
    for name in ("other", "third"):
        extend(stream, f"folder:{make_folder({'a': 6}, name)}", progress=False)
    named = [image for image in list_images(Stream.open(stream)) if image.name == "a/000.jpg"]
    ids = sorted(image.id for image in named)
    with pytest.raises(
        DataError, match=f"2 images are called a/000.jpg: give id {ids[0]}, {ids[1]}"
    ):
        label(stream, write(tmp_path / "t.csv", [{"name": "a/000.jpg", "label": "b"}]))
    rows = [{"id": str(ids[1]), "name": "a/000.jpg", "label": "b"}]
    after = label(stream, write(tmp_path / "t.csv", rows))
    assert {image.id: image.label for image in list_images(after)}[ids[1]] == "b"


def test_not_while_tasks_are_begun(stream, tmp_path, make_folder):
    source = make_folder({"e": 5}, "more")
    (source / "e/1.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="do not decode"):
        extend(stream, f"folder:{source}", progress=False)
    table = write(tmp_path / "t.csv", [{"id": "1", "label": "c"}])
    with pytest.raises(UsageError, match="begun and not finished"):
        label(stream, table)
    extend(stream, f"folder:{source}", skip_bad=True, progress=False)
    assert label(stream, table).given == 1


def test_where_there_is_no_stream(tmp_path):
    table = write(tmp_path / "t.csv", [{"id": "1", "label": "c"}])
    with pytest.raises(DataError, match="there is no stream"):
        label(tmp_path / "none", table)
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="is not a stream"):
        label(tmp_path, table)


def test_where_there_is_no_table(stream, tmp_path):
    with pytest.raises(DataError, match=r"there is no .*gone\.csv"):
        label(stream, tmp_path / "gone.csv")


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "another": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_of_labels_is_named(stream, tmp_path, what):
    label(stream, write(tmp_path / "t.csv", [{"id": "1", "label": "c"}]))
    file = stream / "labels-000000.npy"
    DAMAGE[what](file)
    with pytest.raises(DataError, match=r"labels-000000\.npy: cannot be read: "):
        Stream.open(stream)
    (problem,) = verify(stream, progress=False).problems
    assert str(file) in problem


def test_from_a_url(stream, tmp_path, monkeypatch):
    """fsspec's own memory stands for a server."""
    label(stream, write(tmp_path / "t.csv", [{"id": "1", "label": "c"}]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(stream), "/labelled", recursive=True)
    read = Stream.open("memory://labelled")
    mine, theirs = (facts_by_id(s) for s in (Stream.open(stream), read))
    assert (mine, read.given) == (theirs, 1)
    memory.pipe("/labelled/labels-000000.npy", b"other")
    with pytest.raises(DataError, match=r"labels-000000\.npy cannot be fetched"):
        Stream.open("memory://labelled")


def facts_by_id(stream):
    splits = [stream.split(task, "train") for task in range(len(stream))]
    return [list(zip(split.ids.tolist(), split.labels.tolist(), strict=True)) for split in splits]


def test_a_stream_of_format_1_by_id(tmp_path):
    """As commit 5bd48c9 wrote it: it has no names."""
    with tarfile.open(Path(__file__).parents[1] / "fixtures/5bd48c9.tar.gz") as tar:
        members = [member for member in tar if member.name.startswith("stream/")]
        tar.extractall(tmp_path, members, filter="data")
    older = tmp_path / "stream"
    before = Stream.open(older)
    with pytest.raises(DataError, match="no image is called"):
        label(older, write(tmp_path / "t.csv", [{"name": "digit 1", "label": "digit3"}]))
    id = int(before.split(1, "train").ids[0])
    rows = [{"id": str(id), "label": "lynx"}]
    after = label(older, write(tmp_path / "t.csv", rows), new_classes=True)
    assert after.begins_with(before.fingerprint, len(before))
    assert after.classes == [*before.classes, "lynx"]
    assert after.split(1, "train").labels[0] == len(before.classes)
    assert verify(older, progress=False).problems == []


def test_messages_tell_the_original_name(stream):
    opened = Stream.open(stream)
    for image in list_images(opened):
        split = opened.split(image.task - 1, image.part)
        (row,) = np.flatnonzero(split.ids == image.id).tolist()
        assert split.where(row).endswith(f"sample {image.id:012d} ({image.name})")
        assert split.take(np.array([row])).name(0) == image.name
    shard = stream / "task-00/train-000000.tar"
    data = bytearray(shard.read_bytes())
    row = opened.split(0, "train").index[0]
    start = int(row["offset"])
    data[start : start + 20] = bytes(20)
    shard.write_bytes(data)
    named = f"sample {row['id']:012d} ({opened.split(0, 'train').name(0)}): does not decode"
    assert any(named in problem for problem in verify(stream, True, progress=False).problems)
    (stream / "task-00/train.names.jsonl").write_bytes(b"damaged\n")
    image_name._places.cache_clear()
    assert opened.split(0, "train").name(0) == ""
