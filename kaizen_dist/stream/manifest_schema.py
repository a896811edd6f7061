"""The schema of `stream.json`: bounds of every field, and the consistency of all of them.

The manifest is a chain: the fingerprint after a task is a hash over the one before it and the
task's own entry, so that a run knows its past by a prefix of the stream (`StreamManifest.chain`).

The file may come from anybody: pydantic's ValidationError names the fields that are wrong. Whether
the other files of the stream agree with it, `verify` checks.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from kaizen_dist.common.inventory import StrictModel
from kaizen_dist.stream.field_errors import SHOWN, SHOWN_LENGTH
from kaizen_dist.stream.shards import MOST_SAMPLES, SHA256, ShardInfo, shard_name

FORMAT_VERSION: Final = 2

Part: TypeAlias = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")
Scenario: TypeAlias = Literal["class", "data", "domain", "task"]
TASKS_GIVEN: Final[tuple[Scenario, Scenario]] = ("domain", "task")
"""Scenarios in which the source has the tasks, as many as it likes."""

_MOST_TASKS = 10**6
LONGEST_NAME: Final = 4096
_LONGEST_TEXT = 1 << 16
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def _no_control(text: str) -> str:
    """No language's names have them, and a terminal or a log would follow them."""
    if _CONTROL.search(text):
        raise ValueError("holds control characters")
    return text


Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_no_control)
]
Text: TypeAlias = Annotated[str, Field(max_length=_LONGEST_TEXT)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MOST_SAMPLES)]
Sha256: TypeAlias = Annotated[str, Field(pattern=SHA256)]


def _each_once(tasks: list[list[str]]) -> list[list[str]]:
    if twice := _twice(name for task in tasks for name in task):
        raise ValueError(f"name {twice} twice")
    return tasks


ClassesOfTasks: TypeAlias = Annotated[
    list[Annotated[list[Name], Field(min_length=1)]], AfterValidator(_each_once)
]


class FrozenModel(StrictModel, frozen=True):
    """A strict document that does not change."""


class Settings(FrozenModel):
    """What tasks are made from; the same settings, source and stream before them give the same
    bytes."""

    source: Annotated[Text, AfterValidator(_no_control)]
    scenario: Scenario = "class"
    tasks_wanted: int | None = Field(None, ge=1, le=_MOST_TASKS)
    """None: as many as the source has domains, or tasks of its own."""
    seed: int = Field(5, ge=0, lt=2**63)
    val_fraction: float = Field(0.2, ge=0, lt=1)
    """Held out of the training part where the source has no validation part."""
    labels: float = Field(1.0, ge=0, le=1)
    """Share of the training images that keep their label, per class of a task."""
    resize: int | None = Field(None, ge=1, lt=2**31)
    """Pixels of the shorter side of larger images; None: original bytes."""
    upright: bool = True
    """Whether images are turned as their EXIF orientation says; those that are turned are encoded
    again."""
    shard_size: int = Field(2000, ge=1, le=MOST_SAMPLES)
    domain_order: list[Name] | None = Field(None, max_length=_MOST_TASKS)
    classes: ClassesOfTasks | None = None
    """The classes to take; in the scenario class those of each task."""
    name: Name | None = None
    """Of the tasks, in place of "task N"; of several with their numbers."""


class BadImage(FrozenModel):
    """An image that does not decode and was left out."""

    id: Count
    name: Text
    reason: Text


class TaskInfo(FrozenModel):
    """One task: what is in it, and in which files."""

    folder: str = Field(pattern=r"^[\w-]+$", max_length=60)
    name: Name
    classes: list[Count]
    """The numbers of the classes whose images appear in it, in the order of the scenario; none
    where no image has a label."""
    new_classes: list[Name] = Field(default_factory=list)
    """Names of the classes that no task before it had; they get the next numbers."""
    train: int = Field(ge=1, le=MOST_SAMPLES)
    val: Count
    labelled: Count
    """Training images with a label."""
    shards: list[ShardInfo]
    index_sha256: dict[Part, Sha256]
    names_sha256: dict[Part, Sha256] | None = None
    """Of the images' original names; None in streams of format 1, which have none."""

    def shards_of(self, part: Part) -> list[ShardInfo]:
        """The shards of one part, in order."""
        return [shard for shard in self.shards if shard.name.startswith(f"{part}-")]

    def count(self, part: Part) -> int:
        """Images of one part."""
        return self.train if part == "train" else self.val

    @model_validator(mode="after")
    def _agrees(self) -> "TaskInfo":
        _refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        names = [shard_name(part, n) for part in PARTS for n in range(len(self.shards_of(part)))]
        if names != [shard.name for shard in self.shards]:
            yield (
                f"shards are not {shard_name('train', 0)} and so on, then {shard_name('val', 0)} "
                "and so on, each once"
            )
        for part in PARTS:
            if (held := sum(shard.samples for shard in self.shards_of(part))) != self.count(part):
                yield f"{part} is {self.count(part)}, but its shards hold {held}"
            if part not in self.index_sha256:
                yield f"index_sha256.{part} is missing"
        if self.labelled > self.train:
            yield f"labelled is {self.labelled} of {self.train} images"
        if twice := _twice(self.classes):
            yield f"classes name {twice} twice"


class Addition(FrozenModel):
    """The tasks of one `prepare` or `extend`."""

    settings: Settings
    tasks: int = Field(ge=1, le=_MOST_TASKS)
    ignored: Count
    """Files of the source that are no images."""
    bad: list[BadImage] = Field(default_factory=list)
    source_stamp: Sha256 | None = None
    """By which a later change of the source is noticed; None where it cannot be."""

    @model_validator(mode="after")
    def _agrees(self) -> "Addition":
        if self.settings.tasks_wanted not in (None, self.tasks):
            _refuse(
                [f"tasks_wanted is {self.settings.tasks_wanted}, but there are {self.tasks} tasks"]
            )
        return self


class Origin(FrozenModel):
    """A stream of format 1 that was extended: its tasks, which share one fingerprint."""

    fingerprint: Sha256
    """The sha256 of its stream.json."""
    tasks: int = Field(ge=1, le=_MOST_TASKS)
    classes: list[Name] = Field(min_length=1)
    """All of its class names: they were numbered before the first task."""


class Counts(FrozenModel):
    """Images of a whole stream; `ignored` counts the sources' files that are no images."""

    train: Count
    val: Count
    labelled: Count
    bad: Count
    ignored: Count


class StreamManifest(FrozenModel):
    """The content of `stream.json`."""

    format_version: Literal[2] = FORMAT_VERSION
    fingerprint: Sha256
    """The last of `chain`."""
    additions: list[Addition] = Field(min_length=1)
    tasks: list[TaskInfo] = Field(min_length=1, max_length=_MOST_TASKS)
    origin: Origin | None = None

    @property
    def bad(self) -> list[BadImage]:
        """The images of all sources that do not decode and were left out."""
        return [image for addition in self.additions for image in addition.bad]

    @cached_property
    def classes(self) -> list[str]:
        """All class names, by number."""
        first = self.origin.classes if self.origin else []
        return [*first, *(name for task in self.tasks for name in task.new_classes)]

    @cached_property
    def class_counts(self) -> list[int]:
        """[tasks] how many classes have a number once a task has come."""
        first = len(self.origin.classes) if self.origin else 0
        counts = accumulate((len(task.new_classes) for task in self.tasks), initial=first)
        return list(counts)[1:]

    @cached_property
    def chain(self) -> list[str]:
        """[tasks + 1] the fingerprint, sha256 in hex, of the first 0, 1, 2 ... tasks."""
        return chain(self.tasks, self.additions[0].settings, self.origin)

    @cached_property
    def counts(self) -> Counts:
        """Images of all tasks."""
        total = {name: sum(vars(task)[name] for task in self.tasks) for name in _COUNTED}
        ignored = sum(addition.ignored for addition in self.additions)
        return Counts(**total, bad=len(self.bad), ignored=ignored)

    @model_validator(mode="after")
    def _agrees(self) -> "StreamManifest":
        _refuse([*self._wrong_counts(), *self._wrong_names(), *self._wrong_classes()])
        _refuse(self._wrong_fingerprint())
        return self

    def _wrong_counts(self) -> Iterator[str]:
        if (added := sum(addition.tasks for addition in self.additions)) != len(self.tasks):
            yield f"additions have {added} tasks, but {len(self.tasks)} are listed"
        if self.origin and self.origin.tasks > len(self.tasks):
            yield f"origin.tasks is {self.origin.tasks} of {len(self.tasks)}"
        for key in ("seed", "shard_size"):
            if len(found := {getattr(addition.settings, key) for addition in self.additions}) > 1:
                yield f"additions have {len(found)} values of {key}"

    def _wrong_names(self) -> Iterator[str]:
        lists: dict[str, list[Hashable]] = {
            "tasks.folder": [task.folder for task in self.tasks],
            "bad.id": [image.id for image in self.bad],
        }
        # Two of ImageNet's classes are called "crane" there.
        if not any(a.settings.source.startswith("torchvision:") for a in self.additions):
            lists["classes"] = list(self.classes)
        for where, names in lists.items():
            if twice := _twice(names):
                yield f"{where} has {twice} twice"

    def _wrong_classes(self) -> Iterator[str]:
        for number, (task, count) in enumerate(zip(self.tasks, self.class_counts, strict=True)):
            if (last := max(task.classes, default=-1)) >= count:
                yield f"tasks.{number}.classes names class {last}, there are {count} by then"

    def _wrong_fingerprint(self) -> Iterator[str]:
        if self.fingerprint != self.chain[-1]:
            yield "fingerprint is not that of the tasks"


_COUNTED: Final = ("train", "val", "labelled")
TAKEN_OVER: Final = ("seed", "shard_size", "val_fraction", "labels", "resize", "upright")
"""Settings of the first addition that later ones take over."""


def chain(tasks: Iterable[TaskInfo], first: Settings, origin: Origin | None = None) -> list[str]:
    """See `StreamManifest.chain`; the tasks of `origin` have its fingerprint, all of them, and
    what comes after them is bound to their entries too."""
    start = {key: getattr(first, key) for key in TAKEN_OVER}
    link = _digest("kaizen_dist stream", start | {"origin": origin and origin.model_dump()})
    links = [link]
    for number, task in enumerate(tasks):
        link = _digest(link, task.model_dump())
        links.append(origin.fingerprint if origin and number < origin.tasks else link)
    return links


def _digest(before: str, entry: object) -> str:
    return hashlib.sha256(f"{before} {json.dumps(entry, sort_keys=True)}".encode()).hexdigest()


def _refuse(problems: Iterable[str]) -> None:
    """Raises ValueError, of which pydantic makes its own error, if there are problems."""
    if found := list(problems):
        raise ValueError("; ".join(found[:SHOWN]))


def _twice(names: Iterable[Hashable]) -> str:
    """The first name that comes again, as it may be shown; "" if none does."""
    return next((repr(name)[:SHOWN_LENGTH] for name, n in Counter(names).items() if n > 1), "")
