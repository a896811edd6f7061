"""Scenarios: which images of a source form which task, and which of them keep their label.

A `TaskPlan` has a task's training images in the order of the shards, and its validation images in
source order. Everything random depends on the seed and the number of the task alone, so that tasks
are the same whether they are added one by one or all at once.

    class     each task brings classes (class-incremental)
    data      each task is a random part of everything (data-incremental)
    domain    each task is a domain of the source (domain-incremental)
    task      the source says which image comes in which task

Images without a label come in the tasks of their domain, or as the source says; else they are dealt
out at random. They are all trained on, for there is nothing to measure on them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.hold_out import hold_out, keep_labels
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.manifest_entries import TASKS_GIVEN, Settings
from kaizen_dist.stream.numbers import Numbers, compact
from kaizen_dist.stream.sources.base import Source


@dataclass(frozen=True)
class Past:
    """What a stream has when tasks are added to it."""

    tasks: int = 0
    images: int = 0
    """Also those that did not decode: the next image gets this id."""
    classes: Sequence[str] = ()
    """Names by number."""


@dataclass(frozen=True)
class Chosen:
    """Images of one part of a task, [n] each."""

    source: Numbers
    """Their numbers in the source."""
    ids: Numbers
    """Their numbers in the stream."""
    labels: Numbers
    """Their classes' numbers in the stream, -1: unlabelled."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | Numbers | NDArray[np.bool_]) -> "Chosen":
        return Chosen(self.source[part], self.ids[part], self.labels[part])


@dataclass(frozen=True)
class TaskPlan:
    """One task."""

    name: str
    class_of: dict[int, int]
    """The numbers in the stream of its classes, by those in the source; in the scenario's order."""
    new_classes: list[str]
    """Names of those that no task before it has."""
    train: Chosen
    val: Chosen


@dataclass(frozen=True)
class _Cut:
    """A task as numbers in the source."""

    name: str
    classes: list[int]
    """In the order of the scenario."""
    images: Numbers
    """Ascending."""


def plan(
    source: Source,
    settings: Settings,
    past: Past | None = None,
    taken: NDArray[np.bool_] | None = None,
) -> list[TaskPlan]:
    """Cut a source into tasks that come after those of `past`, without the images `taken` [n].

    Raises UsageError for settings that do not fit the source, DataError for a task without
    training images.
    """
    past = past or Past()
    free = np.ones(len(source), bool) if taken is None else ~taken
    number_of = dict(_known(source.classes, past.classes))
    classes, first_id, tasks = len(past.classes), past.images, []
    for task, cut in enumerate(_cut(source, settings, past.tasks, free), past.tasks):
        new = [label for label in cut.classes if label not in number_of]
        number_of |= {label: classes + n for n, label in enumerate(new)}
        classes += len(new)
        tasks.append(_plan_task(source, settings, task, cut, first_id, number_of, new))
        first_id += len(cut.images)
    return tasks


def _known(names: Sequence[str], known: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(number in `names`, number in `known`) of the names in both; of a name that a data set has
    twice, the first goes with the first."""
    places = defaultdict(list)
    for number, name in enumerate(known):
        places[name].append(number)
    seen: Counter[str] = Counter()
    for label, name in enumerate(names):
        if seen[name] < len(places[name]):
            yield label, places[name][seen[name]]
        seen[name] += 1


def _plan_task(
    source: Source,
    settings: Settings,
    task: int,
    cut: _Cut,
    first_id: int,
    number_of: dict[int, int],
    new: list[int],
) -> TaskPlan:
    own, seed = source.labels[cut.images], settings.seed
    is_val = source.is_val[cut.images]
    if not source.has_val:  # and nothing can be measured on images without a label
        labelled = own >= 0
        group = own[labelled]
        if source.domains:
            domain = source.domains_of[cut.images][labelled].astype(np.int64)
            group = compact(domain * len(source.classes) + group)
        is_val[labelled] = hold_out(group, settings.val_fraction, seed, task)
    if is_val.all():
        raise DataError(f"{cut.name} has no training images: ask for fewer tasks, or add images")
    known = [number_of.get(label, UNLABELLED) for label in range(len(source.classes))]
    numbers = compact(np.array([*known, UNLABELLED]))  # the last one is that of label -1
    labels = keep_labels(numbers[own], is_val, settings.labels, seed, task)
    images = Chosen(cut.images, compact(first_id + np.arange(len(own))), labels)
    train, val = compact(np.flatnonzero(~is_val)), compact(np.flatnonzero(is_val))
    train = train[rng.shuffle(rng.key("task", seed, task), len(train))]
    return TaskPlan(
        cut.name,
        {label: number_of[label] for label in cut.classes},
        [source.classes[label] for label in new],
        images[train],
        images[val],
    )


def class_order(classes: int, seed: int) -> list[int]:
    """The order in which classes come: `torch.randperm` under the seed, as in the reference
    implementation of Kaizen (and of CaSSLe before it). Torch itself would take 500 MB."""
    drawn = np.random.RandomState(seed % (1 << 32)).randint(0, 1 << 32, classes, np.uint32)
    order = list(range(classes))
    for n in range(classes - 1):
        other = n + int(drawn[n]) % (classes - n)
        order[n], order[other] = order[other], order[n]
    return order


def _cut(source: Source, settings: Settings, first: int, free: NDArray[np.bool_]) -> list[_Cut]:
    """The tasks, of which the first has the number `first`, of the images that are free."""
    groups = [_numbers_of(names, source) for names in settings.classes or []]
    if groups:
        free = free & np.isin(source.labels, [label for group in groups for label in group])
    if not free.any():
        return []
    if settings.scenario in TASKS_GIVEN:
        return _given(source, settings, free)
    count = settings.tasks_wanted
    assert count is not None
    if settings.scenario == "class":
        parts = [np.flatnonzero(free & np.isin(source.labels, group)) for group in groups]
        if not groups:
            groups, parts = _by_class(source, free, count, settings.seed, first)
    else:
        groups, parts = [], _random_parts(source, free, count, settings.seed, first)
    names = [f"task {first + number}" for number in range(len(parts))]
    if settings.name is not None:
        names = [f"{settings.name} {n + 1}" for n in range(count)] if count > 1 else [settings.name]
    return [
        _Cut(name, _present(source, part, groups[n] if groups else None), part)
        for n, (name, part) in enumerate(zip(names, parts, strict=True))
    ]


def _present(source: Source, images: Numbers, wanted: Sequence[int] | None = None) -> list[int]:
    """The classes that images have, in the order wanted, else in that of the source."""
    found = np.unique(source.labels[images])
    found = found[found != UNLABELLED].tolist()
    return found if wanted is None else [label for label in wanted if label in found]


def _numbers_of(names: Sequence[str], source: Source) -> list[int]:
    """The numbers that a source has for class names. Raises UsageError for one it has not."""
    if missing := [name for name in names if name not in source.classes]:
        raise UsageError(f"the source {source.spec} has no class {', '.join(missing)}")
    return [n for name in names for n, own in enumerate(source.classes) if own == name]


def _by_class(
    source: Source, free: NDArray[np.bool_], count: int, seed: int, first: int
) -> tuple[list[list[int]], list[Numbers]]:
    """Classes and images of each task; one task has the classes in the order of the source.
    Images without a label are dealt out at random."""
    present = _present(source, np.flatnonzero(free))
    if present and count > len(present):
        raise UsageError(
            f"{count} tasks, but the source has only {len(present)} classes; "
            "ask for at most one task a class"
        )
    order = range(len(present)) if count == 1 else class_order(len(present), seed)
    groups = [[present[n] for n in part] for part in np.array_split(np.array(order), count)]
    task_of = np.full(len(source.classes) + 1, -1, np.int32)
    for number, group in enumerate(groups):
        task_of[group] = number
    task_of_image = np.where(free, task_of[source.labels], -1)
    dealt = _random_parts(source, free & (source.labels == UNLABELLED), count, seed, first)
    parts = [compact(np.flatnonzero(task_of_image == number)) for number in range(count)]
    return groups, [np.sort(np.concatenate(both)) for both in zip(parts, dealt, strict=True)]


def _given(source: Source, settings: Settings, free: NDArray[np.bool_]) -> list[_Cut]:
    """The tasks that a source gives: its domains, or what it calls tasks."""
    what, names, of_image = settings.scenario, source.tasks, source.tasks_of
    if what == "domain":
        names, of_image = source.domains, source.domains_of
    if not names or of_image is None:
        cure = "domains:PATH (DOMAIN/CLASS/*)" if what == "domain" else "table:FILE"
        raise UsageError(
            f"the source {source.spec} has no {what}s; give {cure}, or a table with a column "
            f"{what}, or choose the scenario class or data"
        )
    if without := np.count_nonzero(of_image[free] < 0):
        raise UsageError(
            f"{without:,} images of the source {source.spec} have no {what}: give them one, or "
            "choose the scenario class or data"
        )
    present = [names[n] for n in np.unique(of_image[free])]
    if settings.tasks_wanted not in (None, len(present)):
        raise UsageError(
            f"{settings.tasks_wanted} tasks, but the source has {len(present)} {what}s, "
            "each of which is a task: leave the number of tasks out"
        )
    cuts = []
    for name in _domain_order(present, settings.domain_order) if what == "domain" else present:
        images = compact(np.flatnonzero(free & (of_image == names.index(name))))
        cuts.append(_Cut(name, _present(source, images), images))
    return cuts


def _domain_order(domains: list[str], wanted: Sequence[str] | None) -> list[str]:
    """The domains in the order wanted, or by name. Raises UsageError unless each comes once."""
    if wanted is None:
        return sorted(domains)
    counts = Counter(wanted)
    problems = [f"{name} is missing" for name in domains if name not in counts]
    problems += [f"{name} is no domain" for name in counts if name not in domains]
    problems += [f"{name} comes {n} times" for name, n in counts.items() if n > 1]
    if problems:
        raise UsageError(
            f"the order of domains: {'; '.join(problems)}; name each of {', '.join(domains)} once"
        )
    return list(wanted)


def _random_parts(
    source: Source, free: NDArray[np.bool_], count: int, seed: int, first: int
) -> list[Numbers]:
    """The images of each task; training and validation images are dealt out equally."""
    dealt: list[list[Numbers]] = []
    for part in (False, True):
        images = np.flatnonzero(free & (source.is_val == part))
        images = compact(images)
        shuffled = images[rng.shuffle(rng.key("parts", seed, first, int(part)), len(images))]
        dealt.append(np.array_split(shuffled, count))
    return [np.sort(np.concatenate(parts)) for parts in zip(*dealt, strict=True)]
