"""`label`: labels for images that are in a stream already, set, corrected or taken away.

What a task has learnt stays what it was: a training knows them from its next task on, and one that
begins afterwards as if they had been there from the start.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write
from kaizen_dist.stream.field_errors import shortened
from kaizen_dist.stream.files.table_file import read_table
from kaizen_dist.stream.index import LABELS, UNLABELLED
from kaizen_dist.stream.late_labels import write_labels
from kaizen_dist.stream.manifest import (
    MANIFEST,
    WORK_FOLDER,
    Stream,
    listed_problems,
    load_manifest,
)
from kaizen_dist.stream.manifest_entries import PARTS, LateLabels, Name, Part, TaskLabels
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.names import read_names
from kaizen_dist.stream.shards import KEY_DIGITS
from kaizen_dist.stream.work_folder import begun, clear_finished, work_folder

_COLUMNS = ("id", "name", "label")


class ImageRow(NamedTuple):
    """An image of a stream, as `label --list` writes it."""

    id: int
    name: str
    """Its original one; "" in streams of format 1."""
    label: str
    """Name of its class; "" where it has none."""
    task: int
    """From 1."""
    part: Part


def list_images(stream: Stream) -> Iterator[ImageRow]:
    """Every image of a stream in a folder. Raises DataError."""
    assert isinstance(stream.root, Path), "names are not read from URLs"
    for task, info in enumerate(stream.tasks):
        for part in PARTS:
            split = stream.split(task, part)
            names = iter(read_names(stream.root, info, part))
            for id, label in zip(split.ids.tolist(), split.labels.tolist(), strict=True):
                shown = stream.classes[label] if label != UNLABELLED else ""
                yield ImageRow(id, next(names, ""), shown, task + 1, part)
            next(names, None)  # whose end checks the file


def label(place: str | Path, table: str | Path, *, new_classes: bool = False) -> Stream:
    """Give images of a stream the labels of a table.

    Args:
        place: the stream's folder.
        table: a file in CSV or Parquet with the columns `label` and `id` or `name` (or both), as
            `list_images` gives them. A label is a class's name; an empty one takes the label of a
            training image away.
        new_classes: whether labels may be names that no class has yet; they get the next numbers.

    Raises:
        DataError: the table is missing or faulty; all faults are listed, and nothing is changed.
        UsageError: labels that are no class's, without `new_classes`; tasks are being added.
        WriteError: the stream cannot be written.
    """
    root = Path(place)
    load_manifest(root)  # so that no work folder is made where there is no stream
    asked = _read(Path(table))
    with work_folder(root):
        stream = Stream.open(root)
        if (noted := begun(root)) is not None and noted.after == stream.fingerprint:
            raise UsageError(
                f"tasks for {root} are begun and not finished: give the same `kaizen-dist extend` "
                f"again, or delete {root / WORK_FOLDER} to give them up; then give the labels"
            )
        numbers, added = _numbers(stream, asked, new_classes)
        _find_names(stream, asked)
        images = _images(stream)
        rows, places = _found(asked, numbers, images)
        changed = images["label"][places] != rows["label"]
        if changed.any():
            tasks = np.unique(images["task"][places[changed]]).tolist()
            _commit(root, stream, rows[changed], tasks, added)
    clear_finished(root)
    return Stream.open(root)


@dataclass
class _Asked:
    """The rows of a table, and what is wrong with it."""

    path: Path
    rows: list[int] = field(default_factory=list)
    """Their numbers."""
    ids: list[int] = field(default_factory=list)
    """-1: by name."""
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        if self.faults:
            raise DataError(
                f"{self.path}: nothing is changed:{listed_problems(self.faults)}\nmend the table; "
                "`kaizen-dist label STREAM --list` writes ids, names and labels as they are now"
            )


def _read(path: Path) -> _Asked:
    header, rows = read_table(path, _COLUMNS)
    place = {name: header.index(name) for name in _COLUMNS if name in header}
    if "label" not in place or len(place) < 2:
        raise DataError(
            f"{path}: has the columns {', '.join(header)}; needed are label, and id or name"
        )
    asked, is_name = _Asked(path), TypeAdapter(Name)
    for number, cells in rows:
        if len(cells) != len(header):
            asked.faults.append(f"row {number}: {len(cells)} cells, not {len(header)}")
            continue
        id, name, label = (cells[place[c]].strip() if c in place else "" for c in _COLUMNS)
        if not (id or name):
            asked.faults.append(f"row {number}: neither id nor name")
        elif id and not (id.isdecimal() and len(id) <= KEY_DIGITS):
            asked.faults.append(f"row {number}: id {shortened(id)} is no id")
        elif label and not _fits(is_name, label):
            asked.faults.append(f"row {number}: label {shortened(label)} can be no class's name")
        else:
            asked.rows.append(number)
            asked.ids.append(int(id) if id else -1)
            asked.names.append(name)
            asked.labels.append(label)
    asked.refuse()
    return asked


def _fits(kind: TypeAdapter[str], text: str) -> bool:
    try:
        kind.validate_python(text)
    except ValidationError:
        return False
    return True


def _numbers(stream: Stream, asked: _Asked, new_classes: bool) -> tuple[dict[str, int], list[str]]:
    """Numbers of labels by their classes' names, and names that are new. Raises as `label`."""
    numbers = {"": UNLABELLED} | {name: number for number, name in enumerate(stream.classes)}
    added = [name for name in dict.fromkeys(asked.labels) if name not in numbers]
    if added and not new_classes:
        shown = ", ".join(f"{name} ({asked.labels.count(name)})" for name in added[:10])
        raise UsageError(
            f"{asked.path}: labels that no class of the stream has, with their images: {shown}"
            f"{' ...' if len(added) > 10 else ''}; mend them, or make them classes with "
            "--new-classes"
        )
    several = {name for name, count in Counter(stream.classes).items() if count > 1}
    if ambiguous := sorted(several & set(asked.labels)):
        raise DataError(
            f"{asked.path}: several classes of the stream are called {ambiguous[0]}, so that the "
            "name does not say which is meant; leave these rows out"
        )
    return numbers | {name: len(stream.classes) + n for n, name in enumerate(added)}, added


def _find_names(stream: Stream, asked: _Asked) -> None:
    """The ids of images that are asked for by name, in `asked`. Raises DataError."""
    wanted: dict[str, list[int]] = {name: [] for name in asked.names if name}
    for image in list_images(stream) if wanted else ():
        if image.name in wanted:
            wanted[image.name].append(image.id)
    for i, (row, name) in enumerate(zip(asked.rows, asked.names, strict=True)):
        if not name:
            continue
        found, shown = wanted[name], shortened(name)
        if not found:
            asked.faults.append(f"row {row}: no image is called {shown}")
        elif asked.ids[i] != -1 and asked.ids[i] not in found:
            asked.faults.append(f"row {row}: image {asked.ids[i]} is not called {shown}")
        elif asked.ids[i] == -1 and len(found) > 1:
            which = ", ".join(map(str, found[:5]))
            asked.faults.append(
                f"row {row}: {len(found)} images are called {shown}: give id {which}"
            )
        elif asked.ids[i] == -1:
            asked.ids[i] = found[0]
    asked.refuse()


_IMAGES = np.dtype([*LABELS.descr, ("task", "<i4"), ("val", "?")])


def _images(stream: Stream) -> NDArray[Any]:
    """_IMAGES rows of a stream, ascending by id."""
    parts = []
    for task in range(len(stream)):
        for part in PARTS:
            split = stream.split(task, part)
            rows = np.empty(len(split), _IMAGES)
            rows["id"], rows["label"] = split.ids, split.labels
            rows["task"], rows["val"] = task, part == "val"
            parts.append(rows)
    return np.sort(np.concatenate(parts), order="id")


def _found(
    asked: _Asked, numbers: dict[str, int], images: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """LABELS rows, ascending by id, and where their images stand in `images`. Raises DataError."""
    rows, number = np.empty(len(asked.rows), LABELS), np.array(asked.rows, np.int64)
    rows["id"], rows["label"] = asked.ids, [numbers[label] for label in asked.labels]
    order = np.argsort(rows["id"], kind="stable")
    rows, number = rows[order], number[order]
    places = np.searchsorted(images["id"], rows["id"]).clip(max=len(images) - 1)
    there = images["id"][places] == rows["id"]
    wrong = {
        "no image has this id": ~there,
        "its image is that of an earlier row": np.diff(rows["id"], prepend=-1) == 0,
        "a validation image needs a label": images["val"][places] & (rows["label"] == UNLABELLED),
    }
    for what, rows_wrong in wrong.items():
        asked.faults += [f"row {n}: {what}" for n in number[rows_wrong].tolist()]
    asked.refuse()
    return rows, places


def _commit(
    root: Path, stream: Stream, rows: NDArray[Any], tasks: Sequence[int], added: Sequence[str]
) -> None:
    """Make LABELS rows, which are of images of `tasks`, a part of the stream."""
    before = stream.manifest
    late = LateLabels(
        after=len(stream),
        images=len(rows),
        sha256=write_labels(root, len(before.labels), rows),
        new_classes=list(added),
        tasks=[_task_labels(stream, task, rows) for task in tasks],
    )
    labels = [*before.labels, late]
    manifest = StreamManifest.of(before.additions, before.tasks, before.origin, labels)
    atomic_write(root / MANIFEST, manifest.written())


def _task_labels(stream: Stream, task: int, rows: NDArray[Any]) -> TaskLabels:
    """What a task's labels are with LABELS rows."""
    train, val = (stream.split(task, part).relabelled(rows).labels for part in PARTS)
    present = set(np.unique(np.concatenate([train, val])).tolist()) - {UNLABELLED}
    known = [label for label in stream.tasks[task].classes if label in present]
    return TaskLabels(
        task=task,
        labelled=int(np.count_nonzero(train != UNLABELLED)),
        classes=[*known, *sorted(present - set(known))],
    )
