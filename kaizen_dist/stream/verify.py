"""`verify`: is a prepared stream what its manifest says it is?

In comes a stream's folder, out comes a `Report` with everything that is wrong, each problem
naming file and, where one is concerned, key. No state of the files leads to anything else:
what is damaged is reported, never met as an exception.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.errors import DataError
from kaizen_dist.files import file_sha256
from kaizen_dist.stream.images import BadImageError, EncodedImage, decode_whole
from kaizen_dist.stream.index import index_name, open_index
from kaizen_dist.stream.manifest import MANIFEST, PARTS, Manifest, Part, TaskInfo, load_manifest
from kaizen_dist.stream.pool import Tick, run_jobs
from kaizen_dist.stream.progress import Meter
from kaizen_dist.stream.shards import ShardInfo
from kaizen_dist.stream.walk import UNLABELLED, Entry, read_entries, sample_key

_SHOWN = 50


@dataclass(frozen=True)
class Report:
    """What `verify` found; an intact stream has no problems."""

    path: Path
    problems: list[str]
    shards: int
    images: int

    def raise_if_bad(self) -> None:
        """Raises DataError listing the problems, if there are any."""
        if not self.problems:
            return
        if not self.shards:  # no manifest to check by, which is the whole of the matter
            raise DataError(self.problems[0])
        listed = "".join(f"\n  {problem}" for problem in self.problems[:_SHOWN])
        if len(self.problems) > _SHOWN:
            listed += f"\n  and {len(self.problems) - _SHOWN} more"
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        raise DataError(
            f"{self.path}: {count}{listed}\n"
            "restore these files, or delete the folder and run `kaizen-dist prepare` again"
        )


def verify(
    path: str | Path, decode: bool = False, progress: bool = True, workers: int = 1
) -> Report:
    """Checks counts, sizes and checksums of a stream, and every index row against its tar.

    With `decode`, every image is decoded too, and its size compared with the index. `workers`
    are processes. Raises KaizenError when one of them dies, and nothing else.
    """
    root = Path(path)
    try:
        manifest, _ = load_manifest(root)
    except DataError as error:
        return Report(root, [str(error)], 0, 0)
    problems = _check_counts(root, manifest)
    jobs: list[_Job] = []
    for task in manifest.tasks:
        for part in PARTS:
            of_part, found = _check_index(root, task, part, decode)
            jobs += of_part
            problems += found
    images = manifest.counts.train + manifest.counts.val
    with Meter("verifying", images, shown=progress) as meter:
        found_in = dict(run_jobs(_check_shard, None, jobs, workers, meter.advance))
    for job in jobs:
        problems += found_in[job.path]
    return Report(root, problems, len(jobs), images)


@dataclass(frozen=True)
class _Job:
    """One shard to check, with the rows that its index has for it (None: no index)."""

    path: Path
    info: ShardInfo
    rows: NDArray[Any] | None
    decode: bool


def _check_counts(root: Path, manifest: Manifest) -> list[str]:
    """Do the manifest's own numbers agree with each other?"""
    problems = []
    for task in manifest.tasks:
        for part, count in zip(PARTS, (task.train, task.val), strict=True):
            in_shards = sum(shard.samples for shard in task.shards_of(part))
            if in_shards != count:
                problems.append(f"{task.folder}: {count} {part} images, but {in_shards} in shards")
        if not all(0 <= label < len(manifest.classes) for label in task.classes):
            problems.append(f"{task.folder}: names a class that is not there")
    for name in ("train", "val", "labelled"):
        total, of_tasks = vars(manifest.counts)[name], sum(vars(t)[name] for t in manifest.tasks)
        if total != of_tasks:
            problems.append(f"counts.{name} is {total}, but the tasks have {of_tasks}")
    if manifest.counts.bad != len(manifest.bad):
        problems.append(f"counts.bad is {manifest.counts.bad}, but {len(manifest.bad)} are listed")
    return [f"{root / MANIFEST}: {problem}" for problem in problems]


def _check_index(
    root: Path, task: TaskInfo, part: Part, decode: bool
) -> tuple[list[_Job], list[str]]:
    """The jobs for a part's shards, and what is wrong with its index by itself."""
    folder, shards = root / task.folder, task.shards_of(part)
    path = folder / index_name(part)
    try:
        rows = np.array(open_index(path))
        digest = file_sha256(path)
    except DataError as error:
        return [_Job(folder / shard.name, shard, None, decode) for shard in shards], [str(error)]
    problems = []
    if digest != task.index_sha256[part]:
        problems.append("its sha256 is not the one in stream.json")
    if len(rows) != sum(shard.samples for shard in shards):
        problems.append(f"{len(rows)} rows for {sum(s.samples for s in shards)} images")
    if np.any(rows["shard"] >= len(shards)):
        problems.append(f"it names shard {rows['shard'].max()}, there are {len(shards)}")
    labelled = np.count_nonzero(rows["label"] != UNLABELLED)
    if part == "train" and labelled != task.labelled:
        problems.append(f"{labelled} labelled rows where stream.json counts {task.labelled}")
    jobs = [
        _Job(folder / shard.name, shard, rows[rows["shard"] == number], decode)
        for number, shard in enumerate(shards)
    ]
    return jobs, [f"{path}: {problem}" for problem in problems]


def _check_shard(common: None, job: _Job, tick: Tick) -> tuple[Path, list[str]]:  # noqa: ARG001
    """All that is wrong with one shard, from its size to its images; runs in a worker."""
    problems = []
    entries: list[Entry] = []
    try:
        if (size := job.path.stat().st_size) != job.info.bytes:
            problems.append(f"{job.path}: {size:,} bytes, should be {job.info.bytes:,}")
        if file_sha256(job.path) != job.info.sha256:
            problems.append(f"{job.path}: its sha256 is not the one in stream.json")
        try:
            entries.extend(read_entries(job.path))
        except DataError as error:
            problems.append(str(error))
        if job.decode:
            problems += _check_images(job, entries, tick)
        else:
            tick(len(entries))
    except OSError as error:
        return job.path, [*problems, f"{job.path}: {error.strerror}"]
    if len(entries) != job.info.samples:
        problems.append(f"{job.path}: {len(entries)} samples, should be {job.info.samples}")
    return job.path, problems + _check_rows(job, entries)


def _check_rows(job: _Job, entries: list[Entry]) -> list[str]:
    """Every index row against the sample that the tar has in its place."""
    if job.rows is None:
        return []
    problems = []
    for row, entry in zip(job.rows, entries, strict=False):
        told = {"offset": entry.offset, "length": entry.length, "label": entry.label}
        told["id"] = int(entry.key)
        wrong = [
            f"{name} {row[name]}, not {value}" for name, value in told.items() if row[name] != value
        ]
        if wrong:
            problems.append(f"{job.path}: sample {entry.key}: the index has {', '.join(wrong)}")
    for row in job.rows[len(entries) :]:
        problems.append(f"{job.path}: sample {sample_key(int(row['id']))} is not in the tar")
    for entry in entries[len(job.rows) :]:
        problems.append(f"{job.path}: sample {entry.key} is not in the index")
    return problems


def _check_images(job: _Job, entries: list[Entry], tick: Tick) -> list[str]:
    """Decodes every image, and compares its size with the index."""
    problems = []
    with job.path.open("rb") as file:
        for number, entry in enumerate(entries):
            try:
                image = decode_whole(os.pread(file.fileno(), entry.length, entry.offset))
            except BadImageError as error:
                problems.append(f"{job.path}: sample {entry.key}: does not decode: {error}")
            else:
                problems += _check_facts(job, number, entry, image)
            tick(1)
    return problems


def _check_facts(job: _Job, number: int, entry: Entry, image: EncodedImage) -> list[str]:
    problems = []
    if entry.extension != image.extension:
        problems.append(f"named {entry.extension}, but it is {image.extension}")
    if job.rows is not None and number < len(job.rows):
        height, width = (int(job.rows[number][name]) for name in ("height", "width"))
        if (height, width) != (image.height, image.width):
            actual = f"{image.height}x{image.width}"
            problems.append(f"the index has size {height}x{width}, the image {actual}")
    return [f"{job.path}: sample {entry.key}: {problem}" for problem in problems]
