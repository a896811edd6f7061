"""Adds the tasks that a source makes to a stream; interrupted at any time, it continues.

The plan assigns every image to a shard. Each shard is written by itself (shard_jobs.py); then come
indices and names, and last stream.json, by which readers know what there is: until then they see
the tasks that were there before.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from kaizen_dist.common.console import ProgressBar, one_line, say
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, make_folder, remove, writing
from kaizen_dist.common.locks import alone
from kaizen_dist.stream.index import UNLABELLED, join_index
from kaizen_dist.stream.linked_tars import IndexedTars, tar_jobs
from kaizen_dist.stream.manifest import MANIFEST, load_manifest
from kaizen_dist.stream.manifest_entries import (
    Addition,
    BadImage,
    Part,
    Settings,
    TaskInfo,
)
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.names import images_there, write_names
from kaizen_dist.stream.pool import run_jobs
from kaizen_dist.stream.scenario import Chosen, Past, TaskPlan, plan
from kaizen_dist.stream.shard_jobs import (
    Finished,
    Job,
    ShardResult,
    Shards,
    WrittenShards,
    shard_jobs,
    task_folder,
    write_claimed,
    write_once,
)
from kaizen_dist.stream.sources import open_source, source_stamp
from kaizen_dist.stream.sources.base import Source
from kaizen_dist.stream.work_folder import begin, begun, clear_finished, work_folder

_BAD_SHOWN = 5
_POLL_SECONDS = 0.5
_PATIENCE = 3600.0
"""Seconds in which another process writes the indices of a very large stream."""
_STUCK = "another process of this preparation is stuck: end it, and start the same command again"


@dataclass(frozen=True)
class HowToWrite:
    """What the bytes do not depend on."""

    workers: int = 1
    """Processes. A script that asks for more than one needs `if __name__ == "__main__":`."""
    max_bad: float = 0.001
    """Largest share of images that do not decode; they are left out and listed."""
    progress: bool = True
    """Whether to show the progress on standard error."""
    skip_bad: bool = False
    """Leave out whatever is faulty in the source, and any share of images that do not decode."""
    worker: tuple[int, int] | None = None
    """This process's number, from 0, and how many share the work, on any nodes."""

    def __post_init__(self) -> None:
        if self.worker is not None and not 0 <= self.worker[0] < self.worker[1]:
            raise UsageError(f"worker {self.worker[0]} of {self.worker[1]}: they count from 0")
        if self.workers < 1 or not 0 <= self.max_bad <= 1:
            raise UsageError("workers must be at least 1, and max_bad a fraction from 0 to 1")


def add_tasks(
    root: Path, settings: Settings, manifest: StreamManifest | None, how: HowToWrite
) -> None:
    """Write the tasks that a source makes, after those of the manifest.

    Several processes may do so together (`HowToWrite.worker`): each makes the same plan and takes
    shards that nobody else writes, also those of a process that was killed; one of them commits.
    """
    after = manifest.fingerprint if manifest else ""
    with work_folder(root, shared=how.worker is not None) as work:
        if not _is_committed(root, settings, after):
            _add(root, settings, manifest, how, work)
    # By the last of them, for the others still look there.
    clear_finished(root)


def _add(
    root: Path, settings: Settings, manifest: StreamManifest | None, how: HowToWrite, work: Path
) -> None:
    after = manifest.fingerprint if manifest else ""
    begin(root, settings, after)
    source = open_source(settings.source, work, how.progress, how.skip_bad)
    if how.progress and source.told:
        say("\n  ".join((one_line(source.spec), *source.told)))
    past, taken = Past(), None
    if manifest is not None:
        past = Past(len(manifest.tasks), _images(manifest), manifest.classes)
        taken = images_there(root, manifest, source)
    planned = plan(source, settings, past, taken)
    if not planned:
        say(f"{root} has all images of {settings.source} already that it is to take")
        return
    jobs: Sequence[Job] = (
        tar_jobs(root, source, planned, settings.upright)
        if settings.link
        else shard_jobs(root, source, planned, settings, past.tasks)
    )
    with alone(work / "begin.lock", _STUCK, _PATIENCE):
        if begun(root) is None:
            _remove_given_up(root, manifest)
        begin(root, settings, after, source)
    for number in range(past.tasks, past.tasks + len(planned)):
        make_folder(task_folder(root, number))
    finished = _write_shards(source, jobs, how)
    with alone(work / "commit.lock", _STUCK, _PATIENCE):
        if not _is_committed(root, settings, after):
            _commit(root, manifest, *_finish(root, source, planned, settings, past.tasks, finished))


def _is_committed(root: Path, settings: Settings, after: str) -> bool:
    """Whether another process of this preparation has made its tasks a part of the stream already.

    Raises UsageError where other tasks have come meanwhile.
    """
    if not (root / MANIFEST).exists():
        return False
    manifest = load_manifest(root)
    if manifest.fingerprint == after:
        return False
    before = [link.tasks for link in manifest.chain if link.fingerprint == after]
    ends = accumulate(addition.tasks for addition in manifest.additions)
    come = zip(manifest.additions, ends, strict=True)
    if all(a.settings != settings for a, end in come if end > max(before, default=0)):
        raise UsageError(
            f"other tasks or labels have been added to {root} meanwhile: start the same command "
            "again"
        )
    return True


def _remove_given_up(root: Path, manifest: StreamManifest | None) -> None:
    """Remove what was written of tasks that never became a part of the stream."""
    there = {task.folder for task in manifest.tasks} if manifest else set()
    for folder in root.glob("task-*"):
        if folder.name not in there:
            with writing(folder):
                remove(folder)


def _images(manifest: StreamManifest) -> int:
    """All images that a stream was made from."""
    return manifest.counts.train + manifest.counts.val + manifest.counts.bad


def _write_shards(source: Source, jobs: Sequence[Job], how: HowToWrite) -> Finished:
    """Write (or index, where they are linked) all shards that are not there yet. Raises DataError
    for too many bad images."""
    # What each job has by itself is not sent to every process once more.
    shared = None if all(job.own for job in jobs) else source.images
    results: dict[str, ShardResult] = {}
    bad: list[BadImage] = []
    total = sum(len(job.images) for job in jobs)
    write, waiting = write_once if how.worker is None else write_claimed, _in_turn(jobs, how)
    with ProgressBar("preparing", total, shown=how.progress) as bar:
        while waiting:
            for name, result in run_jobs(write, shared, waiting, how.workers, bar.advance):
                if result is not None:
                    results[name] = result
                    bad += result.bad
                    _check_bad(bad, total, 1 if how.skip_bad else how.max_bad)
            waiting = [job for job in waiting if job.name not in results]
            if waiting:  # other processes write them, or are killed meanwhile
                time.sleep(_POLL_SECONDS)
    return [(job, results[job.name]) for job in jobs]


def _in_turn(jobs: Sequence[Job], how: HowToWrite) -> Sequence[Job]:
    """A process's own share first, then that of the next process, and so on."""
    if how.worker is None:
        return jobs
    number, count = how.worker
    return [job for n in range(count) for job in jobs[(number + n) % count :: count]]


def _finish(
    root: Path,
    source: Source,
    planned: list[TaskPlan],
    settings: Settings,
    first: int,
    finished: Finished,
) -> tuple[Addition, list[TaskInfo]]:
    """Write indices and names of all tasks."""
    shards = IndexedTars(finished) if settings.link else WrittenShards(finished)
    tasks = [
        _finish_task(source, task, task_folder(root, number), shards)
        for number, task in enumerate(planned, first)
    ]
    addition = Addition(
        settings=settings,
        tasks=len(tasks),
        ignored=source.ignored,
        bad=sorted((b for _, result in finished for b in result.bad), key=lambda b: b.id),
        source_stamp=source_stamp(source.spec, source),
    )
    return addition, tasks


def _check_bad(bad: list[BadImage], total: int, max_bad: float) -> None:
    if len(bad) > max_bad * total:
        first = sorted(bad, key=lambda image: image.id)[:_BAD_SHOWN]
        listed = "".join(f"\n  {image.name}: {image.reason}" for image in first)
        raise DataError(
            f"{len(bad)} of {total} images do not decode, more than the share of {max_bad:g} that "
            f"may be left out; among them{listed}\nmend or remove them, or allow more with "
            "--max-bad or --skip-bad; what is finished is kept"
        )


def _finish_task(source: Source, planned: TaskPlan, folder: Path, shards: Shards) -> TaskInfo:
    """Write indices and names of a task. Raises DataError when no training image is left."""
    chosen: dict[Part, Chosen] = {"train": planned.train, "val": planned.val}
    parts = {part: shards.part(folder, part, images) for part, images in chosen.items()}
    kept = {part: of_part for part, (of_part, _, _) in parts.items()}
    if len(kept["train"]) == 0:
        raise DataError(f"{planned.name} has no training images that decode")
    names, indices, present = {}, {}, set[int]()
    for part, (images, rows, _) in parts.items():
        names[part] = write_names(folder, part, map(source.name_of, images.source))
        indices[part] = join_index(folder, part, len(images), rows)
        present.update(np.unique(source.labels[images.source]).tolist())
    return TaskInfo(
        folder=folder.name,
        name=planned.name,
        classes=[own for label, own in planned.class_of.items() if label in present],
        new_classes=planned.new_classes,
        train=len(kept["train"]),
        val=len(kept["val"]),
        labelled=int(np.count_nonzero(kept["train"].labels != UNLABELLED)),
        shards=[shard for _, _, of_part in parts.values() for shard in of_part],
        index_sha256=indices,
        names_sha256=names,
    )


def _commit(
    root: Path, before: StreamManifest | None, addition: Addition, tasks: list[TaskInfo]
) -> None:
    """Make the new tasks a part of the stream, all at once."""
    additions = [*before.additions, addition] if before else [addition]
    tasks = [*before.tasks, *tasks] if before else tasks
    parts = (before.origin, before.labels) if before else ()
    atomic_write(root / MANIFEST, StreamManifest.of(additions, tasks, *parts).written())
