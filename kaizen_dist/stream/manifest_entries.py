"""The entries of `stream.json`: tasks, the settings that they were made from, labels given later.

Entries form a chain: a fingerprint is a hash over the one before it and the next task's or labels'
own entry, so that a run knows its past by a prefix of the stream.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from kaizen_dist.common.inventory import StrictModel
from kaizen_dist.stream.field_errors import SHOWN, SHOWN_LENGTH
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.shards import MOST_SAMPLES, SHA256, ShardInfo, shard_name

Part: TypeAlias = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")
Scenario: TypeAlias = Literal["class", "data", "domain", "task"]
TASKS_GIVEN: Final[tuple[Scenario, Scenario]] = ("domain", "task")
"""Scenarios in which the source has the tasks, as many as it likes."""

MOST_TASKS: Final = 10**6
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
    if again := twice(name for task in tasks for name in task):
        raise ValueError(f"name {again} twice")
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
    tasks_wanted: int | None = Field(None, ge=1, le=MOST_TASKS)
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
    domain_order: list[Name] | None = Field(None, max_length=MOST_TASKS)
    classes: ClassesOfTasks | None = None
    """The classes to take; in the scenario class those of each task."""
    name: Name | None = None
    """Of the tasks, in place of "task N"; of several with their numbers."""
    link: bool = False
    """Whether the shards are links to the tars of the source, see linked_tars.py."""

    @model_serializer(mode="wrap")
    def _as_before_links(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`link` is written where it is true only: stream.json stays what it was without it."""
        written: dict[str, Any] = fields(self)
        if not self.link:
            written.pop("link", None)
        return written


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

    def wrong_labels(self, part: Part, labels: NDArray[np.int64]) -> list[str]:
        """What is wrong with the labels [n] of a part."""
        problems, found = [], np.unique(labels)
        strange = np.setdiff1d(found, [UNLABELLED, *self.classes])
        if len(strange):
            what = f"it has label {strange[0]}, which is none of the classes of {self.folder}"
            problems.append(what)
        if part == "val" and UNLABELLED in found:
            problems.append(f"{np.count_nonzero(labels == UNLABELLED)} of its images have no label")
        if part == "train" and (count := np.count_nonzero(labels != UNLABELLED)) != self.labelled:
            problems.append(f"{count} labelled rows where stream.json counts {self.labelled}")
        return problems

    @model_validator(mode="after")
    def _agrees(self) -> "TaskInfo":
        refuse(self._problems())
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
        if again := twice(self.classes):
            yield f"classes name {again} twice"


class Addition(FrozenModel):
    """The tasks of one `prepare` or `extend`."""

    settings: Settings
    tasks: int = Field(ge=1, le=MOST_TASKS)
    ignored: Count
    """Files of the source that are no images."""
    bad: list[BadImage] = Field(default_factory=list)
    source_stamp: Sha256 | None = None
    """By which a later change of the source is noticed; None where it cannot be."""

    @model_validator(mode="after")
    def _agrees(self) -> "Addition":
        if self.settings.tasks_wanted not in (None, self.tasks):
            refuse(
                [f"tasks_wanted is {self.settings.tasks_wanted}, but there are {self.tasks} tasks"]
            )
        return self


class Origin(FrozenModel):
    """A stream of format 1 that was extended: its tasks, which share one fingerprint."""

    fingerprint: Sha256
    """The sha256 of its stream.json."""
    tasks: int = Field(ge=1, le=MOST_TASKS)
    classes: list[Name] = Field(min_length=1)
    """All of its class names: they were numbered before the first task."""


class TaskLabels(FrozenModel):
    """What the labels of a task are from then on; see `TaskInfo`."""

    task: int = Field(ge=0, lt=MOST_TASKS)
    labelled: Count
    classes: list[Count]


class LateLabels(FrozenModel):
    """Labels that were given to images of the stream, see late_labels.py."""

    after: int = Field(ge=1, le=MOST_TASKS)
    """The number of tasks that there were."""
    images: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    sha256: Sha256
    new_classes: list[Name] = Field(default_factory=list)
    """Names that no class had before; they get the next numbers."""
    tasks: list[TaskLabels] = Field(min_length=1)
    """Those whose images they are, ascending."""

    @model_validator(mode="after")
    def _agrees(self) -> "LateLabels":
        numbers = [labels.task for labels in self.tasks]
        if numbers != sorted(set(numbers)) or numbers[-1] >= self.after:
            refuse([f"tasks are not ascending numbers below {self.after}"])
        return self


TAKEN_OVER: Final = ("seed", "shard_size", "val_fraction", "labels", "resize", "upright")
"""Settings of the first addition that later ones take over."""


class StreamState(NamedTuple):
    """A state of a stream."""

    tasks: int
    fingerprint: str
    """sha256 in hex."""


def chain(
    tasks: Sequence[TaskInfo],
    first: Settings,
    origin: Origin | None = None,
    labels: Sequence[LateLabels] = (),
) -> list[StreamState]:
    """The states of a stream: without a task, and after every further task or labels.

    The tasks of `origin` have its fingerprint, all of them, and what comes after them is bound to
    their entries too.
    """
    start = {key: getattr(first, key) for key in TAKEN_OVER}
    link = _digest("kaizen_dist stream", start | {"origin": origin and origin.model_dump()})
    links = [StreamState(0, link)]
    for number, entry in in_order(tasks, labels):
        link = _digest(link, entry.model_dump())
        within = origin is not None and isinstance(entry, TaskInfo) and number <= origin.tasks
        links.append(StreamState(number, origin.fingerprint if origin and within else link))
    return links


def in_order(
    tasks: Sequence[TaskInfo], labels: Sequence[LateLabels]
) -> Iterator[tuple[int, TaskInfo | LateLabels]]:
    """Tasks and labels as they came, each with the number of tasks that there were then."""
    coming = iter([*labels, None])
    late = next(coming)
    for number, task in enumerate(tasks, 1):
        yield number, task
        while late is not None and late.after == number:
            yield number, late
            late = next(coming)


def _digest(before: str, entry: object) -> str:
    return hashlib.sha256(f"{before} {json.dumps(entry, sort_keys=True)}".encode()).hexdigest()


def refuse(problems: Iterable[str]) -> None:
    """Raises ValueError, of which pydantic makes its own error, if there are problems."""
    if found := list(problems):
        raise ValueError("; ".join(found[:SHOWN]))


def twice(names: Iterable[Hashable]) -> str:
    """The first name that comes again, as it may be shown; "" if none does."""
    return next((repr(name)[:SHOWN_LENGTH] for name, n in Counter(names).items() if n > 1), "")
