"""`prepare`: writes a stream from a source, to be interrupted and taken up at any time.

In come a source's spec and the settings, out comes an open `Stream`. The plan says which image
goes into which shard, so each shard is a piece of work of its own: its bytes are the same
whoever writes it, when, and beside how many others. Each finished shard is noted in the work
folder; at the end the indices are written, then stream.json, and the work folder is removed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kaizen_dist.common.console import ProgressBar, one_line, say
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, file_sha256, make_folder
from kaizen_dist.stream.images import BadImageError, decode_whole
from kaizen_dist.stream.index import UNLABELLED, join_rows, write_index
from kaizen_dist.stream.manifest import MANIFEST, WORK_FOLDER, Stream, load_manifest
from kaizen_dist.stream.manifest_schema import (
    PARTS,
    BadImage,
    Counts,
    Part,
    Settings,
    StreamManifest,
    TaskInfo,
    field_errors,
)
from kaizen_dist.stream.pool import Tick, run_jobs
from kaizen_dist.stream.scenario import StreamPlan, plan
from kaizen_dist.stream.shards import ShardSample, shard_name, write_shard
from kaizen_dist.stream.sources import Source, open_source, resolve_spec, stamp
from kaizen_dist.stream.workfolder import (
    ShardResult,
    WorkFolder,
    check_same,
    check_source,
    note_source,
    work_folder,
)

DEFAULT_TASKS = 5
_BAD_SHOWN = 5


def prepare(
    source_spec: str,
    out: str | Path,
    *,
    scenario: str = "class",
    tasks: int | None = None,
    seed: int = 5,
    val_fraction: float = 0.2,
    labels: float = 1.0,
    resize: int | None = None,
    shard_size: int = 2000,
    workers: int = 1,
    max_bad: float = 0.001,
    domain_order: list[str] | None = None,
    progress: bool = True,
) -> Stream:
    """Writes the stream `out`, or finishes it, or finds it finished and does nothing.

    Args:
        source_spec: see sources.py.
        scenario: `class`, `data` or `domain`.
        tasks: how many; None: 5, or as many as the source has domains.
        val_fraction: share held out where the source has no validation part of its own.
        labels: share of each class's training images that keep their label.
        resize: pixels; larger images are scaled until their shorter side has this length.
        shard_size: images a shard.
        workers: processes; the result does not depend on it. A script that asks for more than
            one needs its `if __name__ == "__main__":`.
        max_bad: the share of images that may fail to decode; they are left out and listed.
        domain_order: all the domains, in the order in which they come.
        progress: whether a bar or lines on standard error show how far it is.

    Raises:
        UsageError: for bad settings, for a folder that holds something else, or a stream of
            other settings.
        DataError: for a source that is missing or damaged, has too many bad images, or is no
            longer the one that `out` was made from.
        WriteError: when the disk is full or may not be written.
        KaizenError: when a worker process dies.
    """
    settings = _settings(
        source=resolve_spec(source_spec),
        scenario=scenario,
        tasks_wanted=DEFAULT_TASKS if tasks is None and scenario != "domain" else tasks,
        seed=seed,
        val_fraction=val_fraction,
        labels=labels,
        resize=resize,
        shard_size=shard_size,
        domain_order=domain_order,
    )
    if workers < 1 or not 0 <= max_bad <= 1:
        raise UsageError("workers must be at least 1, and max_bad a fraction from 0 to 1")
    root = Path(out)
    if _is_finished(root, settings):
        check_source(root, settings.source)
        WorkFolder(root).remove()
        return Stream.open(root)
    with work_folder(root) as work:
        work.check(settings)
        source = open_source(settings.source, work.path, progress)
        if progress and source.told:
            say("\n  ".join((one_line(source.spec), *source.told)))
        cut = plan(source, settings)
        work.begin(settings, source.fingerprint())
        jobs = _jobs(root, cut, settings)
        _write_shards(source, jobs, workers, max_bad, progress)
        note_source(root, stamp(settings.source, source))
        _write_manifest(source, cut, jobs, work, settings)
        work.remove()
    return Stream.open(root)


def _settings(**given: Any) -> Settings:
    """The settings, or a UsageError naming every bad one."""
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise UsageError(field_errors(error).replace("tasks_wanted", "tasks")) from None
    if settings.domain_order is not None and settings.scenario != "domain":
        raise UsageError("an order of domains goes with the scenario domain only")
    return settings


def _is_finished(root: Path, settings: Settings) -> bool:
    """Whether `root` is this stream already. Raises UsageError if it is anything but a stream,
    finished or not, of these settings."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; give a folder for the stream")
    if (root / MANIFEST).exists():
        check_same(root, load_manifest(root)[0].settings, settings)
        return True
    if root.exists() and any(root.iterdir()) and not (root / WORK_FOLDER).is_dir():
        raise UsageError(f"{root} is not empty and no stream; give an empty or a new folder")
    return False


# ---- the shards -------------------------------------------------------------------------


@dataclass(frozen=True)
class _ShardJob:
    """One shard: all that decides on its bytes."""

    folder: Path
    part: Part
    number: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    resize: int | None
    work: WorkFolder

    @property
    def name(self) -> str:
        """Its name in the work folder, e.g. `task-00-train-000000`."""
        return f"{self.folder.name}-{shard_name(self.part, self.number).removesuffix('.tar')}"


def _task_folder(number: int) -> str:
    return f"task-{number:02d}"


def _jobs(root: Path, cut: StreamPlan, settings: Settings) -> list[_ShardJob]:
    jobs = []
    for number, task in enumerate(cut.tasks):
        folder = root / _task_folder(number)
        for part, ids in zip(PARTS, (task.train, task.val), strict=True):
            for shard, start in enumerate(range(0, len(ids), settings.shard_size)):
                chosen = ids[start : start + settings.shard_size]
                place = (folder, part, shard, chosen, cut.labels[chosen])
                jobs.append(_ShardJob(*place, settings.resize, WorkFolder(root)))
    return jobs


def _write_shards(
    source: Source,
    jobs: list[_ShardJob],
    workers: int,
    max_bad: float,
    progress: bool,
) -> None:
    """Writes all shards that are not there yet. Raises DataError for too many bad images."""
    for folder in sorted({job.folder for job in jobs}):
        make_folder(folder)
    bad: list[BadImage] = []
    total = sum(len(job.ids) for job in jobs)
    with ProgressBar("preparing", total, shown=progress) as meter:
        for result in run_jobs(_write_one, source, jobs, workers, meter.advance):
            bad += result.bad
            _check_bad(bad, total, max_bad)


def _check_bad(bad: list[BadImage], total: int, max_bad: float) -> None:
    if len(bad) > max_bad * total:
        first = sorted(bad, key=lambda image: image.id)[:_BAD_SHOWN]
        listed = "".join(f"\n  {image.name}: {image.reason}" for image in first)
        raise DataError(
            f"{len(bad)} of {total} images do not decode, more than the share of {max_bad:g} that "
            f"may be left out; among them{listed}\nmend or remove them, or allow more with "
            "--max-bad; what is finished is kept"
        )


def _write_one(source: Source, job: _ShardJob, tick: Tick) -> ShardResult:
    """Writes a shard and notes it, unless that was done before; runs in a worker process."""
    if (kept := job.work.result(job.name, job.folder)) and _is_whole(job, *kept):
        tick(len(job.ids))
        return kept[0]
    bad: list[BadImage] = []
    rows, info = write_shard(job.folder, job.part, job.number, _samples(source, job, bad, tick))
    result = ShardResult(shard=info, bad=bad)
    job.work.keep(job.name, result, rows)
    return result


def _is_whole(job: _ShardJob, result: ShardResult, rows: NDArray[Any]) -> bool:
    """Whether a shard of an earlier session is what this one would write."""
    bad = [image.id for image in result.bad]
    left_out = np.isin(job.ids, bad)
    return (
        result.shard.name == shard_name(job.part, job.number)
        and np.count_nonzero(left_out) == len(bad)
        and np.array_equal(rows["id"], job.ids[~left_out])
        and np.array_equal(rows["label"], job.labels[~left_out])
        and file_sha256(job.folder / result.shard.name) == result.shard.sha256
    )


def _samples(
    source: Source, job: _ShardJob, bad: list[BadImage], tick: Tick
) -> Iterator[ShardSample]:
    """The samples of a shard, each decoded once; what does not decode is added to `bad`."""
    for id, label in zip(job.ids.tolist(), job.labels.tolist(), strict=True):
        try:
            image = decode_whole(source.read(id), job.resize)
        except BadImageError as error:
            bad.append(BadImage(id=id, name=source.name_of(id), reason=str(error)))
        else:
            yield ShardSample(id, label, *image)
        tick(1)


# ---- the manifest -----------------------------------------------------------------------


def _write_manifest(
    source: Source, cut: StreamPlan, jobs: list[_ShardJob], work: WorkFolder, settings: Settings
) -> None:
    """Writes the indices, then stream.json, from the results of all shards."""
    bad: list[BadImage] = []
    tasks = []
    for number, planned in enumerate(cut.tasks):
        of_task = [job for job in jobs if job.folder.name == _task_folder(number)]
        task, bad_of_task = _finish_task(source, of_task, planned.name, planned.classes, work)
        tasks.append(task)
        bad += bad_of_task
    manifest = StreamManifest(
        **settings.model_dump(),
        classes=source.classes,
        counts=Counts(
            train=sum(task.train for task in tasks),
            val=sum(task.val for task in tasks),
            labelled=sum(task.labelled for task in tasks),
            bad=len(bad),
            ignored=source.ignored,
        ),
        tasks=tasks,
        bad=sorted(bad, key=lambda image: image.id),
    )
    atomic_write(work.root / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def _finish_task(
    source: Source, jobs: list[_ShardJob], name: str, classes: list[int], work: WorkFolder
) -> tuple[TaskInfo, list[BadImage]]:
    """Writes the indices of a task. Raises DataError when no training image is left."""
    folder = jobs[0].folder
    found = [(job.part, work.result(job.name, folder)) for job in jobs]
    results = [(part, *result) for part, result in found if result is not None]
    if len(results) < len(jobs):
        raise DataError(f"{folder}: shards vanished while they were prepared; run it again")
    rows = {part: join_rows(r for p, _, r in results if p == part) for part in PARTS}
    if len(rows["train"]) == 0:
        raise DataError(f"{name} has no training images that decode")
    present = set(source.labels[np.concatenate([rows[part]["id"] for part in PARTS])].tolist())
    task = TaskInfo(
        folder=folder.name,
        name=name,
        classes=[label for label in classes if label in present],
        train=len(rows["train"]),
        val=len(rows["val"]),
        labelled=int(np.count_nonzero(rows["train"]["label"] != UNLABELLED)),
        shards=[result.shard for _, result, _ in results],
        index_sha256={part: write_index(folder, part, rows[part]) for part in PARTS},
    )
    return task, [image for _, result, _ in results for image in result.bad]
