"""`verify`: checks the files of a prepared stream against its manifest.

Sizes and sha256 of all files are compared with stream.json, the indices with the order that the
seed gives; with `decode`, every image is decoded too. Damage of any kind is a line in the report
that names the file (and the sample's key), never an exception.
"""

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import file_sha256, open_to_read
from kaizen_dist.stream.image_name import image_name, names_file
from kaizen_dist.stream.images import MOST_BYTES, BadImageError, decode_whole
from kaizen_dist.stream.index import index_name, read_index
from kaizen_dist.stream.manifest import (
    MANIFEST,
    Stream,
    index_facts,
    listed_problems,
    load_manifest,
)
from kaizen_dist.stream.manifest_entries import PARTS, Part, TaskInfo
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.pool import Tick, run_jobs
from kaizen_dist.stream.reader import Folder, StoredFile, named
from kaizen_dist.stream.shards import ShardInfo, named_sample, sample_key


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; an intact stream has no problems."""

    path: Path
    problems: list[str]
    shards: int
    images: int

    def raise_if_bad(self) -> None:
        """Raises DataError listing the problems, if there are any."""
        if not self.problems:
            return
        if not self.shards:  # the manifest itself cannot be read
            raise DataError(self.problems[0])
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        raise DataError(
            f"{self.path}: {count}{listed_problems(self.problems)}\n"
            "restore these files, or delete the folder and run `kaizen-dist prepare` again"
        )


def verify(
    path: str | Path, decode: bool = False, progress: bool = True, workers: int = 1
) -> VerifyReport:
    """Checks counts, sizes and checksums of a stream.

    With `decode`, every image is decoded too, and its size compared with the index. `workers`
    are processes. Raises KaizenError when one of them dies, and nothing else.
    """
    root = Path(path)
    try:
        manifest = load_manifest(root)
    except DataError as error:
        return VerifyReport(root, [str(error)], 0, 0)
    problems: list[str] = []
    checks: dict[Hashable, _ShardCheck] = {}
    ids: dict[tuple[int, Part], NDArray[np.int64]] = {}
    for number, task in enumerate(manifest.tasks):
        for part in PARTS:
            rows, found = _check_index(root, task, part)
            problems += found + _check_names(root, task, part)
            for n, shard in enumerate(task.shards_of(part)):
                path = root / task.folder / shard.name
                # A tar that several tasks link is read once.
                file = os.path.realpath(path), shard.bytes, shard.sha256
                check = checks.setdefault(file, _ShardCheck(path, shard))
                check.images += shard.samples
                if decode and rows is not None:
                    check.rows.append((path, rows[rows["shard"] == n]))
            if rows is not None:
                ids[number, part] = rows["id"].astype(np.int64)
    problems += _check_ids(root, manifest, ids)
    images = manifest.counts.train + manifest.counts.val
    jobs = list(checks.values())
    with ProgressBar("verifying", images, shown=progress) as meter:
        found_in = dict(run_jobs(_check_shard, None, jobs, workers, meter.advance))
    problems += [problem for job in jobs for problem in found_in[job.path]]
    if not problems:  # for the stream must open
        problems += _check_late_labels(root)
    return VerifyReport(root, problems, len(jobs), images)


@dataclass
class _ShardCheck:
    """One file that is a shard, or several where they link it; how many images they have, and the
    INDEX rows of those to decode, by shard."""

    path: Path
    info: ShardInfo
    images: int = 0
    rows: list[tuple[Path, NDArray[Any]]] = field(default_factory=list)


def _check_index(root: Path, task: TaskInfo, part: Part) -> tuple[NDArray[Any] | None, list[str]]:
    """The rows of a part (None: unreadable), and what is wrong with its index by itself."""
    folder, shards, count = root / task.folder, task.shards_of(part), task.count(part)
    path = folder / index_name(part)
    problems = []
    try:
        rows = read_index(StoredFile(Folder(folder), path.name, index_facts(task, part)))
        if file_sha256(path) != task.index_sha256[part]:
            problems.append("its sha256 is not the one in stream.json")
    except DataError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{path}: {error.strerror}"]
    if len(rows) != count:
        problems.append(f"{len(rows)} rows for {count} images")
    if np.any(rows["shard"] >= len(shards)):
        problems.append(f"it names shard {rows['shard'].max()}, there are {len(shards)}")
    for row in rows[rows["length"] > MOST_BYTES]:
        problems.append(f"sample {sample_key(row['id'])}: no image has {row['length']:,} bytes")
    problems += task.wrong_labels(part, rows["label"].astype(np.int64))
    return rows, [f"{path}: {problem}" for problem in problems]


def _check_names(root: Path, task: TaskInfo, part: Part) -> list[str]:
    """What is wrong with the original names of a part; streams of format 1 have none."""
    path = root / task.folder / names_file(part)
    try:
        if task.names_sha256 is None or file_sha256(path) == task.names_sha256.get(part):
            return []
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    return [f"{path}: its sha256 is not the one in stream.json"]


def _check_late_labels(root: Path) -> list[str]:
    """What is wrong with labels that came later."""
    try:
        Stream.open(root).check_labels()
    except DataError as error:
        return str(error).splitlines()
    return []


def _check_ids(
    root: Path, manifest: StreamManifest, ids: dict[tuple[int, Part], NDArray[np.int64]]
) -> list[str]:
    """Whether every image of the source comes once, and in the order that the seed gives."""
    if len(ids) < len(PARTS) * len(manifest.tasks):
        return []  # an index is damaged, which is reported already
    bad = np.array([image.id for image in manifest.bad], np.int64)
    everything = np.sort(np.concatenate([*ids.values(), bad]))
    if not np.array_equal(everything, np.arange(len(everything))):
        return [f"{root / MANIFEST}: the indices, with bad, do not have every id once"]
    if len(bad):
        return []  # their places in the order are not known
    problems, seed = [], manifest.additions[0].settings.seed
    for (number, part), of_part in ids.items():
        in_order = np.sort(of_part)
        if part == "train":
            key = rng.key("task", seed, number)
            in_order = in_order[rng.shuffle(key, len(in_order))]
        if not np.array_equal(of_part, in_order):
            path = root / manifest.tasks[number].folder / index_name(part)
            problems.append(f"{path}: its order is not that of seed {seed}")
    return problems


def _check_shard(common: None, job: _ShardCheck, tick: Tick) -> tuple[Path, list[str]]:  # noqa: ARG001
    """All that is wrong with one shard; runs in a worker."""
    problems = []
    try:
        size = job.path.stat().st_size
        if size != job.info.bytes:
            problems.append(f"{size:,} bytes, should be {job.info.bytes:,}")
        # A file of the wrong size is not read: it might have no end.
        elif file_sha256(job.path) != job.info.sha256:
            problems.append("its sha256 is not the one in stream.json")
        tick(job.images - sum(len(rows) for _, rows in job.rows))
        for path, rows in job.rows:
            problems += _check_images(path, rows, tick)
    except OSError as error:
        problems.append(str(error.strerror))
    return job.path, [f"{named(job.path)}: {problem}" for problem in problems]


def _check_images(path: Path, rows: NDArray[Any], tick: Tick) -> Iterator[str]:
    """Decodes every image of a shard, and compares its size with the index."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        for row in rows:
            offset, length = int(row["offset"]), int(row["length"])
            height, width = int(row["height"]), int(row["width"])
            try:
                if offset + length > size:
                    raise BadImageError("the shard is cut short")
                # One byte too many is refused as too large.
                image = decode_whole(os.pread(file.fileno(), min(length, MOST_BYTES + 1), offset))
            except BadImageError as error:
                yield f"{_named(path, row)}: does not decode: {error}"
            else:
                if (height, width) != (image.height, image.width):
                    actual = f"{image.height}x{image.width}"
                    sizes = f"the index has size {height}x{width}, the image {actual}"
                    yield f"{_named(path, row)}: {sizes}"
            tick(1)


def _named(shard: Path, row: NDArray[Any]) -> str:
    """An image by its key, and its original name where there is one."""
    id = int(row["id"])
    return named_sample(id, image_name(shard.parent, shard.name.partition("-")[0], id))
