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

from kaizen_dist.common import rng
from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import file_sha256, open_to_read
from kaizen_dist.stream.images import MOST_BYTES, BadImageError, EncodedImage, decode_whole
from kaizen_dist.stream.index import Index, index_name
from kaizen_dist.stream.manifest import (
    MANIFEST,
    index_facts,
    listed_problems,
    load_manifest,
    wrong_labels,
)
from kaizen_dist.stream.manifest_schema import PARTS, Manifest, Part, TaskInfo
from kaizen_dist.stream.pool import Tick, run_jobs
from kaizen_dist.stream.reader import Folder, StoredFile
from kaizen_dist.stream.shards import ShardInfo
from kaizen_dist.stream.tar_scan import Entry, read_entries, sample_key


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
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        raise DataError(
            f"{self.path}: {count}{listed_problems(self.problems)}\n"
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
    problems: list[str] = []
    jobs: list[_Job] = []
    ids: dict[tuple[int, Part], NDArray[np.int64]] = {}
    for number, task in enumerate(manifest.tasks):
        for part in PARTS:
            rows, found = _check_index(root, task, part)
            problems += found
            for n, shard in enumerate(task.shards_of(part)):
                of_shard = None if rows is None else rows[rows["shard"] == n]
                jobs.append(_Job(root / task.folder / shard.name, shard, of_shard, decode))
            if rows is not None:
                ids[number, part] = rows["id"].astype(np.int64)
    problems += _check_ids(root, manifest, ids)
    images = manifest.counts.train + manifest.counts.val
    with ProgressBar("verifying", images, shown=progress) as meter:
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


def _check_index(root: Path, task: TaskInfo, part: Part) -> tuple[NDArray[Any] | None, list[str]]:
    """The rows of a part (None: they cannot be had), and what is wrong with its index by itself."""
    folder, shards, count = root / task.folder, task.shards_of(part), task.count(part)
    path = folder / index_name(part)
    problems = []
    try:
        index = Index(StoredFile(Folder(folder), path.name, index_facts(task, part)))
        if len(index) != count:
            problems.append(f"{len(index)} rows for {count} images")
        rows = index[:count]
        if file_sha256(path) != task.index_sha256[part]:
            problems.append("its sha256 is not the one in stream.json")
    except DataError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{path}: {error.strerror}"]
    if np.any(rows["shard"] >= len(shards)):
        problems.append(f"it names shard {rows['shard'].max()}, there are {len(shards)}")
    problems += wrong_labels(task, part, rows["label"].astype(np.int64))
    return rows, [f"{path}: {problem}" for problem in problems]


def _check_ids(
    root: Path, manifest: Manifest, ids: dict[tuple[int, Part], NDArray[np.int64]]
) -> list[str]:
    """Does every image of the source come once, and in the order that the seed gives?"""
    if len(ids) < len(PARTS) * len(manifest.tasks):
        return []  # an index is damaged, which has been said
    bad = np.array([image.id for image in manifest.bad], np.int64)
    everything = np.sort(np.concatenate([*ids.values(), bad]))
    if not np.array_equal(everything, np.arange(len(everything))):
        return [f"{root / MANIFEST}: the indices, with bad, do not have every id once"]
    if len(bad):
        return []  # whose places in the order are not known
    problems = []
    for (number, part), of_part in ids.items():
        in_order = np.sort(of_part)
        if part == "train":
            key = rng.key("task", manifest.seed, number)
            in_order = in_order[rng.shuffle(key, len(in_order))]
        if not np.array_equal(of_part, in_order):
            path = root / manifest.tasks[number].folder / index_name(part)
            problems.append(f"{path}: its order is not that of seed {manifest.seed}")
    return problems


def _check_shard(common: None, job: _Job, tick: Tick) -> tuple[Path, list[str]]:  # noqa: ARG001
    """All that is wrong with one shard, from its size to its images; runs in a worker."""
    problems = []
    entries: list[Entry] = []
    try:
        size = job.path.stat().st_size
        if size != job.info.bytes:
            problems.append(f"{job.path}: {size:,} bytes, should be {job.info.bytes:,}")
        # What is too long need not be read, and might have no end.
        elif file_sha256(job.path) != job.info.sha256:
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
    problems += [
        f"{job.path}: sample {entry.key}: no image has {entry.length:,} bytes"
        for entry in entries
        if entry.length > MOST_BYTES
    ]
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
    with open_to_read(job.path) as file:
        for number, entry in enumerate(entries):
            try:
                length = min(entry.length, MOST_BYTES + 1)  # one too many is refused as such
                image = decode_whole(os.pread(file.fileno(), length, entry.offset))
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
