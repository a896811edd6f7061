"""Scenarios: which images of a source form which task, and which of them keep their label.

A `StreamPlan` has for every task the ids of its training images in the order of the shards, and of
its validation images in source order. Everything random depends on the seed alone.

    class     each task brings new classes (class-incremental)
    data      each task is a random part of everything (data-incremental)
    domain    each task is a domain of the source (domain-incremental)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.manifest_schema import Settings
from kaizen_dist.stream.sources.base import Source

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TaskPlan:
    """One task: ids are ordinals in the source."""

    name: str
    classes: list[int]
    """The classes it may hold, in the order of the scenario."""
    train: Ids
    val: Ids


@dataclass(frozen=True)
class StreamPlan:
    """All tasks, and the label that every image of the source is stored with ([n], -1: none)."""

    tasks: list[TaskPlan]
    labels: NDArray[np.int64]


def plan(source: Source, settings: Settings) -> StreamPlan:
    """Cuts a source into tasks.

    Raises UsageError for settings that do not fit the source, DataError for a task without
    training images.
    """
    is_val = source.is_val
    if not source.has_val:
        is_val = hold_out(source, settings.val_fraction, settings.seed)
    tasks = _cut(source, settings, is_val)
    for task in tasks:
        if len(task.train) == 0:
            raise DataError(
                f"{task.name} has no training images: ask for fewer tasks, or add images"
            )
    labels = keep_labels(source.labels, is_val, settings.labels, settings.seed)
    return StreamPlan(tasks, labels)


def class_order(classes: int, seed: int) -> list[int]:
    """The order in which classes come: `torch.randperm` under the seed, as in the reference
    implementation of Kaizen (and of CaSSLe before it)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return [int(c) for c in torch.randperm(classes, generator=generator)]


def hold_out(source: Source, fraction: float, seed: int) -> NDArray[np.bool_]:
    """[n] which images become validation images: about `fraction` of each (domain, class).

    Systematic sampling: the images, sorted by (domain, class) and shuffled within, are taken
    wherever the running sum of `fraction` passes a whole number, so that any stretch of them,
    and so any number of tiny classes together, gives its share to within one image. A group
    always keeps an image to train on.
    """
    count = len(source)
    group = source.domains_of * len(source.classes) + source.labels
    shuffled = rng.shuffle(rng.key("hold out", seed), count)
    order = shuffled[np.argsort(group[shuffled], kind="stable")]
    start = rng.uniform(rng.key("hold out start", seed), 1, 0)[0]
    passed = np.floor(start + fraction * np.arange(count + 1))
    held = np.zeros(count, bool)
    held[order] = np.diff(passed) > 0
    _, first, group_of = np.unique(group[order], return_index=True, return_inverse=True)
    used_up = np.bincount(group_of, weights=~held[order]) == 0
    held[order[first[used_up]]] = False
    return held


def keep_labels(
    labels: NDArray[np.int64], is_val: NDArray[np.bool_], fraction: float, seed: int
) -> NDArray[np.int64]:
    """[n] labels, -1 where hidden: `fraction` of each class's training images keep theirs, one
    at least unless the fraction is 0; validation images always do.

    A smaller fraction under the same seed keeps a subset of what a larger one keeps.
    """
    stored = labels.copy()
    if fraction == 1:
        return stored
    train = rng.shuffle(rng.key("labels", seed), len(labels))
    train = train[~is_val[train]]
    train = train[np.argsort(labels[train], kind="stable")]
    sizes = np.bincount(labels[train])
    rank = np.arange(len(train)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.maximum(1, np.rint(fraction * sizes)) if fraction > 0 else np.zeros(len(sizes))
    stored[train[rank >= kept[labels[train]]]] = UNLABELLED
    return stored


def _cut(source: Source, settings: Settings, is_val: NDArray[np.bool_]) -> list[TaskPlan]:
    seed = settings.seed
    if settings.scenario == "domain":
        return _by_domain(source, settings, is_val)
    count = settings.tasks_wanted
    assert count is not None
    if settings.scenario == "class":
        if count > len(source.classes):
            raise UsageError(
                f"{count} tasks, but the source has only {len(source.classes)} classes; "
                "ask for at most one task a class"
            )
        chunks = np.array_split(class_order(len(source.classes), seed), count)
        task_of_class = np.empty(len(source.classes), np.int64)
        for number, chunk in enumerate(chunks):
            task_of_class[chunk] = number
        classes, task_of = [chunk.tolist() for chunk in chunks], task_of_class[source.labels]
    else:
        classes = [list(range(len(source.classes)))] * count
        task_of = _random_parts(is_val, count, seed)
    names = [f"task {number}" for number in range(count)]
    return _tasks(names, classes, task_of, is_val, seed)


def _by_domain(source: Source, settings: Settings, is_val: NDArray[np.bool_]) -> list[TaskPlan]:
    if not source.domains:
        raise UsageError(
            f"the source {source.spec} has no domains; give domains:PATH (DOMAIN/CLASS/*), "
            "or choose the scenario class or data"
        )
    if settings.tasks_wanted not in (None, len(source.domains)):
        raise UsageError(
            f"{settings.tasks_wanted} tasks, but the source has {len(source.domains)} domains, "
            "each of which is a task: leave the number of tasks out"
        )
    order = _domain_order(source.domains, settings.domain_order)
    position = np.argsort([source.domains.index(name) for name in order])
    classes = [list(range(len(source.classes)))] * len(order)
    return _tasks(order, classes, position[source.domains_of], is_val, settings.seed)


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


def _random_parts(is_val: NDArray[np.bool_], count: int, seed: int) -> NDArray[np.int64]:
    """[n] a task for every image; training and validation images are dealt out equally."""
    task_of = np.empty(len(is_val), np.int64)
    for part in (False, True):
        ids = np.flatnonzero(is_val == part)
        shuffled = ids[rng.shuffle(rng.key("parts", seed, int(part)), len(ids))]
        for number, chunk in enumerate(np.array_split(shuffled, count)):
            task_of[chunk] = number
    return task_of


def _tasks(
    names: Sequence[str],
    classes: Sequence[list[int]],
    task_of: NDArray[np.int64],
    is_val: NDArray[np.bool_],
    seed: int,
) -> list[TaskPlan]:
    """The tasks, each with its training images shuffled once."""
    tasks = []
    for number, name in enumerate(names):
        train = np.flatnonzero((task_of == number) & ~is_val)
        train = train[rng.shuffle(rng.key("task", seed, number), len(train))]
        val = np.flatnonzero((task_of == number) & is_val)
        tasks.append(TaskPlan(name, classes[number], train, val))
    return tasks
