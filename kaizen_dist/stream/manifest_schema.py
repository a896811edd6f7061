"""The schema of `stream.json`: bounds of every field, and the consistency of all of them.

The file may come from anybody: pydantic's ValidationError names the fields that are wrong. Whether
the other files of the stream agree with it, `verify` checks.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import Final, Literal

from pydantic import Field, model_validator

from kaizen_dist.stream.manifest_entries import (
    MOST_TASKS,
    Addition,
    BadImage,
    Count,
    FrozenModel,
    LateLabels,
    Origin,
    Sha256,
    StreamState,
    TaskInfo,
    chain,
    in_order,
    refuse,
    twice,
)

FORMAT_VERSION: Final = 2


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
    tasks: list[TaskInfo] = Field(min_length=1, max_length=MOST_TASKS)
    """As they were added; see `tasks_by`."""
    origin: Origin | None = None
    labels: list[LateLabels] = Field(default_factory=list)

    @classmethod
    def of(
        cls,
        additions: list[Addition],
        tasks: list[TaskInfo],
        origin: Origin | None = None,
        labels: Sequence[LateLabels] = (),
    ) -> "StreamManifest":
        """The manifest of these entries, with its fingerprint."""
        fingerprint = chain(tasks, additions[0].settings, origin, labels)[-1].fingerprint
        return cls(
            fingerprint=fingerprint,
            additions=additions,
            tasks=tasks,
            origin=origin,
            labels=list(labels),
        )

    def written(self) -> bytes:
        """The content of its file."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def bad(self) -> list[BadImage]:
        """The images of all sources that do not decode and were left out."""
        return [image for addition in self.additions for image in addition.bad]

    @cached_property
    def classes(self) -> list[str]:
        """All class names, by number."""
        names = list(self.origin.classes) if self.origin else []
        for _, entry in in_order(self.tasks, self.labels):
            names += entry.new_classes
        return names

    @cached_property
    def class_counts(self) -> list[int]:
        """[tasks] how many classes have a number once a task has come."""
        count, counts = len(self.origin.classes) if self.origin else 0, []
        for _, entry in in_order(self.tasks, self.labels):
            count += len(entry.new_classes)
            if isinstance(entry, TaskInfo):
                counts.append(count)
        return counts

    @cached_property
    def chain(self) -> list[StreamState]:
        """The states that the stream has had, the present one last."""
        return chain(self.tasks, self.additions[0].settings, self.origin, self.labels)

    @cached_property
    def task_fingerprints(self) -> list[str]:
        """[tasks] the fingerprint that the stream had when a task had come."""
        first = {link.tasks: link.fingerprint for link in reversed(self.chain)}
        return [first[number] for number in range(1, len(self.tasks) + 1)]

    def tasks_by(self, given: int) -> list[TaskInfo]:
        """The tasks by their own labels and the first `given` of those that came later."""
        tasks = list(self.tasks)
        for late in self.labels[:given]:
            for now in late.tasks:
                changed = {"classes": now.classes, "labelled": now.labelled}
                tasks[now.task] = tasks[now.task].model_copy(update=changed)
        return tasks

    def known_classes(self, task: int, given: int) -> int:
        """How many classes have a number that a task (0 is the first) or one before it uses, or had
        one when it came; by the first `given` of the labels that came later."""
        late = (now for labels in self.labels[:given] for now in labels.tasks if now.task <= task)
        used = (label + 1 for now in late for label in now.classes)
        return max(self.class_counts[task], max(used, default=0))

    @cached_property
    def counts(self) -> Counts:
        """Images of all tasks."""
        tasks = self.tasks_by(len(self.labels))
        total = {name: sum(vars(task)[name] for task in tasks) for name in _COUNTED}
        ignored = sum(addition.ignored for addition in self.additions)
        return Counts(**total, bad=len(self.bad), ignored=ignored)

    @model_validator(mode="after")
    def _agrees(self) -> "StreamManifest":
        refuse([*self._wrong_counts(), *self._wrong_labels(), *self._wrong_names()])
        refuse([*self._wrong_classes(), *self._wrong_fingerprint()])
        return self

    def _wrong_counts(self) -> Iterator[str]:
        if (added := sum(addition.tasks for addition in self.additions)) != len(self.tasks):
            yield f"additions have {added} tasks, but {len(self.tasks)} are listed"
        if self.origin and self.origin.tasks > len(self.tasks):
            yield f"origin.tasks is {self.origin.tasks} of {len(self.tasks)}"
        for key in ("seed", "shard_size"):
            if len(found := {getattr(addition.settings, key) for addition in self.additions}) > 1:
                yield f"additions have {len(found)} values of {key}"

    def _wrong_labels(self) -> Iterator[str]:
        came = [labels.after for labels in self.labels]
        first = self.origin.tasks if self.origin else 1
        if came != sorted(came) or not all(first <= after <= len(self.tasks) for after in came):
            yield f"labels are not in order, after {first} to {len(self.tasks)} tasks"
            return
        for late in self.labels:
            for now in late.tasks:
                if now.labelled > (train := self.tasks[now.task].train):
                    yield f"labels say that task {now.task} has {now.labelled} of {train} labelled"

    def _wrong_names(self) -> Iterator[str]:
        lists: dict[str, list[Hashable]] = {
            "tasks.folder": [task.folder for task in self.tasks],
            "bad.id": [image.id for image in self.bad],
        }
        # Two of ImageNet's classes are called "crane" there.
        if not any(a.settings.source.startswith("torchvision:") for a in self.additions):
            lists["classes"] = list(self.classes)
        for where, names in lists.items():
            if again := twice(names):
                yield f"{where} has {again} twice"

    def _wrong_classes(self) -> Iterator[str]:
        for number, (task, count) in enumerate(zip(self.tasks, self.class_counts, strict=True)):
            if (last := max(task.classes, default=-1)) >= count:
                yield f"tasks.{number}.classes names class {last}, there are {count} by then"
        count = len(self.origin.classes) if self.origin else 0
        for _, entry in in_order(self.tasks, self.labels):
            count += len(entry.new_classes)
            for now in entry.tasks if isinstance(entry, LateLabels) else ():
                if (last := max(now.classes, default=-1)) >= count:
                    yield f"labels name class {last}, there are {count} by then"

    def _wrong_fingerprint(self) -> Iterator[str]:
        if self.fingerprint != self.chain[-1].fingerprint:
            yield "fingerprint is not that of the tasks and labels"


_COUNTED: Final = ("train", "val", "labelled")
