"""The schema of `stream.json`: bounds of every field, and the consistency of all of them.

The file may come from anybody: pydantic's ValidationError names the fields that are wrong. Whether
the other files of the stream agree with it, `verify` checks.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kaizen_dist.common.console import one_line
from kaizen_dist.common.inventory import StrictModel
from kaizen_dist.stream.shards import MOST_SAMPLES, SHA256, ShardInfo, shard_name

FORMAT_VERSION: Final = 1

Part: TypeAlias = Literal["train", "val"]
PARTS: tuple[Part, Part] = ("train", "val")
Scenario: TypeAlias = Literal["class", "data", "domain"]

_MOST_TASKS = 10**6
_LONGEST_NAME = 4096
_LONGEST_TEXT = 1 << 16
_SHOWN = 10
_SHOWN_LENGTH = 300


def _no_control(text: str) -> str:
    """No language's names have them, and a terminal or a log would follow them."""
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        raise ValueError("holds control characters")
    return text


Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=_LONGEST_NAME), AfterValidator(_no_control)
]
Text: TypeAlias = Annotated[str, Field(max_length=_LONGEST_TEXT)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MOST_SAMPLES)]


class FrozenModel(StrictModel, frozen=True):
    """A strict document that does not change."""


class Settings(FrozenModel):
    """What a stream is prepared from; the same settings and source give the same bytes."""

    format_version: Literal[1] = FORMAT_VERSION
    source: Annotated[Text, AfterValidator(_no_control)]
    scenario: Scenario = "class"
    tasks_wanted: int | None = Field(None, ge=1, le=_MOST_TASKS)
    """None: as many as the source has domains."""
    seed: int = Field(5, ge=0, lt=2**63)
    val_fraction: float = Field(0.2, ge=0, lt=1)
    """Held out of the training part where the source has no validation part."""
    labels: float = Field(1.0, ge=0, le=1)
    """Share of the training images that keep their label, per class."""
    resize: int | None = Field(None, ge=1, lt=2**31)
    """Pixels of the shorter side of larger images; None: original bytes."""
    shard_size: int = Field(2000, ge=1, le=MOST_SAMPLES)
    domain_order: list[Name] | None = Field(None, max_length=_MOST_TASKS)


class BadImage(FrozenModel):
    """An image that does not decode and was left out."""

    id: Count
    name: Text
    reason: Text


class TaskInfo(FrozenModel):
    """One task: what is in it, and in which files."""

    folder: str = Field(pattern=r"^[\w-]+$", max_length=60)
    name: Name
    classes: list[Count] = Field(min_length=1)
    """The classes whose images appear in it, in the order of the scenario."""
    train: int = Field(ge=1, le=MOST_SAMPLES)
    val: Count
    labelled: Count
    """Training images with a label."""
    shards: list[ShardInfo]
    index_sha256: dict[Part, Annotated[str, Field(pattern=SHA256)]]

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


COUNTED: Final = ("train", "val", "labelled")
"""The counts that a task and the whole stream have alike."""


class Counts(FrozenModel):
    """Images of the whole stream; `ignored` counts the source's files that are no images."""

    train: Count
    val: Count
    labelled: Count
    bad: Count
    ignored: Count


class StreamManifest(Settings):
    """The content of `stream.json`."""

    classes: list[Name] = Field(min_length=1)
    counts: Counts
    tasks: list[TaskInfo] = Field(min_length=1, max_length=_MOST_TASKS)
    bad: list[BadImage]

    @property
    def settings(self) -> Settings:
        """The part of it that was asked for."""
        return Settings(**self.model_dump(include=set(Settings.model_fields)))

    @model_validator(mode="after")
    def _agrees(self) -> "StreamManifest":
        _refuse([*self._wrong_counts(), *self._wrong_names(), *self._wrong_tasks()])
        return self

    def _wrong_counts(self) -> Iterator[str]:
        for name in COUNTED:
            total, of_tasks = vars(self.counts)[name], sum(vars(t)[name] for t in self.tasks)
            if total != of_tasks:
                yield f"counts.{name} is {total}, but the tasks have {of_tasks}"
        if self.counts.bad != len(self.bad):
            yield f"counts.bad is {self.counts.bad}, but {len(self.bad)} are listed"
        if self.tasks_wanted not in (None, len(self.tasks)):
            yield f"tasks_wanted is {self.tasks_wanted}, but there are {len(self.tasks)} tasks"
        # A shard is full but for the images that did not decode; the last of a part holds the rest.
        parts = [task.shards_of(part) for task in self.tasks for part in PARTS]
        full = [shard.samples for shards in parts for shard in shards[:-1]]
        most = max((shard.samples for shards in parts for shard in shards), default=0)
        if most > self.shard_size or self.shard_size * len(full) - sum(full) > self.counts.bad:
            yield f"shard_size is {self.shard_size}, but the shards have other sizes"
        if self.labels in (0, 1) and self.counts.labelled != self.labels * self.counts.train:
            yield f"labels is {self.labels:g}, but counts.labelled is {self.counts.labelled}"

    def _wrong_names(self) -> Iterator[str]:
        lists: dict[str, list[Hashable]] = {
            "tasks.folder": [task.folder for task in self.tasks],
            "tasks.name": [task.name for task in self.tasks],
            "bad.id": [image.id for image in self.bad],
        }
        # Two of ImageNet's classes are called "crane" there.
        if not self.source.startswith("torchvision:"):
            lists["classes"] = list(self.classes)
        for where, names in lists.items():
            if twice := _twice(names):
                yield f"{where} has {twice} twice"
        if self.domain_order is not None:
            if self.scenario != "domain":
                yield f"domain_order goes with the scenario domain, not {self.scenario}"
            if self.domain_order != [task.name for task in self.tasks]:
                yield "domain_order is not the order of the tasks' names"

    def _wrong_tasks(self) -> Iterator[str]:
        for number, task in enumerate(self.tasks):
            if (last := max(task.classes)) >= len(self.classes):
                yield f"tasks.{number}.classes names class {last}, there are {len(self.classes)}"
        if self.scenario == "class":
            if twice := _twice(label for task in self.tasks for label in task.classes):
                yield f"class {twice} is in two tasks, in the scenario class"
        elif any(task.classes != sorted(task.classes) for task in self.tasks):
            yield f"tasks.classes are not in order, in the scenario {self.scenario}"


def field_errors(error: ValidationError) -> str:
    """What pydantic found wrong, on one line: `field: message; field: message`."""
    problems = error.errors(include_url=False, include_input=False)
    lines = []
    for problem in problems[:_SHOWN]:
        where = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        lines.append(shortened(f"{where}: {what}" if where else what))
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more")
    return "; ".join(lines)


def shortened(text: object) -> str:
    """What somebody else's file says, so that a message may quote it."""
    line = one_line(text)
    return line if len(line) <= _SHOWN_LENGTH else f"{line[:_SHOWN_LENGTH]}..."


def _refuse(problems: Iterable[str]) -> None:
    """Raises ValueError, of which pydantic makes its own error, if there are problems."""
    if found := list(problems):
        raise ValueError("; ".join(found[:_SHOWN]))


def _twice(names: Iterable[Hashable]) -> str:
    """The first name that comes again, as it may be shown; "" if none does."""
    return next((repr(name)[:_SHOWN_LENGTH] for name, n in Counter(names).items() if n > 1), "")
