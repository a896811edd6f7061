"""`prepare`: writes a stream from a source; interrupted at any time, it continues.

The plan assigns every image to a shard. Each shard is written by itself (shard_jobs.py); at the
end come the indices, then stream.json, and the work folder (work_folder.py) is removed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from kaizen_dist.common.console import ProgressBar, one_line, say
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.stream.index import UNLABELLED, join_rows, write_index
from kaizen_dist.stream.manifest import MANIFEST, WORK_FOLDER, Stream, load_manifest
from kaizen_dist.stream.manifest_schema import (
    COUNTED,
    PARTS,
    BadImage,
    Counts,
    Settings,
    StreamManifest,
    TaskInfo,
    field_errors,
)
from kaizen_dist.stream.pool import run_jobs
from kaizen_dist.stream.scenario import StreamPlan, TaskPlan, plan
from kaizen_dist.stream.shard_jobs import ShardJob, ShardResult, write_once
from kaizen_dist.stream.sources import open_source, resolve_spec
from kaizen_dist.stream.sources.base import Source
from kaizen_dist.stream.work_folder import (
    begin,
    check_same,
    check_source,
    note_source,
    remove_work_folder,
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
        source_spec: see sources/.
        scenario, seed, val_fraction, labels, resize, shard_size, domain_order: see `Settings`.
        tasks: their number; None: 5, or as many as the source has domains.
        workers: processes, on which the result does not depend. A script that asks for more than
            one needs `if __name__ == "__main__":`.
        max_bad: largest share of images that do not decode; they are left out and listed.
        progress: whether to show the progress on standard error.

    Raises:
        UsageError: for bad settings, or where `out` holds another stream or other files.
        DataError: for a source that is missing, damaged, changed, or has too many bad images.
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
    if _is_finished(root := Path(out), settings):
        check_source(root, settings.source)
        remove_work_folder(root)
    else:
        with work_folder(root) as work:
            begin(root, settings)
            source = open_source(settings.source, work, progress)
            if progress and source.told:
                say("\n  ".join((one_line(source.spec), *source.told)))
            planned = plan(source, settings)
            begin(root, settings, source)
            _write_stream(root, source, planned, settings, workers, max_bad, progress)
            remove_work_folder(root)
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


# ---- shards and manifest ----------------------------------------------------------------


def _write_stream(
    root: Path,
    source: Source,
    planned: StreamPlan,
    settings: Settings,
    workers: int,
    max_bad: float,
    progress: bool,
) -> None:
    """Writes all shards that are not there yet, then the rest of the stream.

    Raises DataError for too many bad images.
    """
    jobs = _jobs(root, planned, settings)
    for folder in sorted({job.folder for job in jobs}):
        make_folder(folder)
    results: dict[str, ShardResult] = {}
    bad: list[BadImage] = []
    total = sum(len(job.ids) for job in jobs)
    with ProgressBar("preparing", total, shown=progress) as bar:
        for name, result in run_jobs(write_once, source, jobs, workers, bar.advance):
            results[name] = result
            bad += result.bad
            _check_bad(bad, total, max_bad)
    note_source(root, source)
    finished = [(job, results[job.name]) for job in jobs]
    _write_manifest(root, source, planned, settings, finished)


def _jobs(root: Path, planned: StreamPlan, settings: Settings) -> list[ShardJob]:
    jobs = []
    for number, task in enumerate(planned.tasks):
        for part, ids in zip(PARTS, (task.train, task.val), strict=True):
            for shard, start in enumerate(range(0, len(ids), settings.shard_size)):
                chosen = ids[start : start + settings.shard_size]
                labels = planned.labels[chosen]
                jobs.append(ShardJob(root, number, part, shard, chosen, labels, settings.resize))
    return jobs


def _check_bad(bad: list[BadImage], total: int, max_bad: float) -> None:
    if len(bad) > max_bad * total:
        first = sorted(bad, key=lambda image: image.id)[:_BAD_SHOWN]
        listed = "".join(f"\n  {image.name}: {image.reason}" for image in first)
        raise DataError(
            f"{len(bad)} of {total} images do not decode, more than the share of {max_bad:g} that "
            f"may be left out; among them{listed}\nmend or remove them, or allow more with "
            "--max-bad; what is finished is kept"
        )


def _write_manifest(
    root: Path,
    source: Source,
    planned: StreamPlan,
    settings: Settings,
    finished: list[tuple[ShardJob, ShardResult]],
) -> None:
    """Writes the indices, then stream.json."""
    tasks = [
        _finish_task(source, task, [pair for pair in finished if pair[0].task == number])
        for number, task in enumerate(planned.tasks)
    ]
    bad = [image for _, result in finished for image in result.bad]
    counts = {name: sum(vars(task)[name] for task in tasks) for name in COUNTED}
    manifest = StreamManifest(
        **settings.model_dump(),
        classes=source.classes,
        counts=Counts(**counts, bad=len(bad), ignored=source.ignored),
        tasks=tasks,
        bad=sorted(bad, key=lambda image: image.id),
    )
    atomic_write(root / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def _finish_task(
    source: Source, planned: TaskPlan, shards: list[tuple[ShardJob, ShardResult]]
) -> TaskInfo:
    """Writes the indices of a task. Raises DataError when no training image is left."""
    folder = shards[0][0].folder
    rows = {
        part: join_rows(result.rows for job, result in shards if job.part == part) for part in PARTS
    }
    if len(rows["train"]) == 0:
        raise DataError(f"{planned.name} has no training images that decode")
    present = set(source.labels[np.concatenate([rows[part]["id"] for part in PARTS])].tolist())
    return TaskInfo(
        folder=folder.name,
        name=planned.name,
        classes=[label for label in planned.classes if label in present],
        train=len(rows["train"]),
        val=len(rows["val"]),
        labelled=int(np.count_nonzero(rows["train"]["label"] != UNLABELLED)),
        shards=[result.shard for _, result in shards],
        index_sha256={part: write_index(folder, part, rows[part]) for part in PARTS},
    )
