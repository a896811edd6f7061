"""The shards of a stream in preparation: one job each, done once.

    STREAM/.prepare/task-00-train-000000.json  per finished shard: its description, its bad images
    STREAM/.prepare/task-00-train-000000.npy   and its INDEX rows (written first)

A `ShardJob` writes a shard; a tar that is linked has a job too (linked_tars.py). What comes of a
job depends on it alone, so any worker does the same. A finished shard of an interrupted session is
kept if it is what the job would make.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_write, file_sha256, read_bytes
from kaizen_dist.common.locks import claimed
from kaizen_dist.stream.images import BadImageError, EncodedImage, decode_whole
from kaizen_dist.stream.index import decode_index, encode_index
from kaizen_dist.stream.manifest import WORK_FOLDER
from kaizen_dist.stream.manifest_entries import PARTS, BadImage, Part, Settings
from kaizen_dist.stream.pool import Tick
from kaizen_dist.stream.scenario import Chosen, TaskPlan
from kaizen_dist.stream.shards import ShardInfo, ShardSample, shard_name, write_shard
from kaizen_dist.stream.sources.base import Divisible, Images, Source


@dataclass(frozen=True)
class Job(ABC):
    """One shard: everything that it depends on, beside the source."""

    root: Path
    """Of the stream."""
    images: Chosen
    upright: bool
    own: Images | None = field(default=None, kw_only=True)
    """These images alone, in this order; None: they are found among all by their numbers."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in the work folder, e.g. `task-00-train-000000`."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The file that becomes the shard."""

    @property
    @abstractmethod
    def shard(self) -> str:
        """The name in its description."""

    @abstractmethod
    def stored(self, data: bytes) -> EncodedImage:
        """An image of the source as the shard holds it. Raises BadImageError."""

    @abstractmethod
    def make(
        self, images: Images | None, samples: Iterator[ShardSample]
    ) -> tuple[NDArray[Any], ShardInfo]:
        """The INDEX rows [n] of the samples, and the shard's description. Raises WriteError."""

    def rows(self) -> NDArray[Any]:
        """The INDEX rows [n] of the finished shard. Raises DataError."""
        try:
            return decode_index(read_bytes(self.note("npy")))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.note('npy')}: cannot be read ({error}): run the same command again"
            ) from error

    def note(self, suffix: str) -> Path:
        """A file in the work folder."""
        return self.root / WORK_FOLDER / f"{self.name}.{suffix}"


@dataclass(frozen=True)
class ShardJob(Job):
    """A shard that is written."""

    task: int
    part: Part
    number: int
    resize: int | None

    @property
    def folder(self) -> Path:
        """The folder of its task."""
        return task_folder(self.root, self.task)

    @property
    def name(self) -> str:
        return f"{self.folder.name}-{Path(self.shard).stem}"

    @property
    def path(self) -> Path:
        return self.folder / self.shard

    @property
    def shard(self) -> str:
        return shard_name(self.part, self.number)

    def stored(self, data: bytes) -> EncodedImage:
        return decode_whole(data, self.resize, self.upright)

    def make(
        self,
        images: Images | None,  # noqa: ARG002
        samples: Iterator[ShardSample],
    ) -> tuple[NDArray[Any], ShardInfo]:
        return write_shard(self.folder, self.part, self.number, samples)


def task_folder(root: Path, task: int) -> Path:
    """The folder of a task, in that of the stream."""
    return root / f"task-{task:02d}"


class ShardResult(NamedTuple):
    """A finished shard; its INDEX rows are in the work folder, for there may be millions."""

    shard: ShardInfo
    bad: list[BadImage]

    def kept(self, images: Chosen) -> Chosen:
        """The images without those that did not decode."""
        return images[~np.isin(images.ids, [image.id for image in self.bad])]


class _ShardNote(BaseModel):
    shard: ShardInfo
    bad: list[BadImage]
    rows_sha256: str


Finished: TypeAlias = Sequence[tuple[Job, ShardResult]]


class Shards(Protocol):
    """The finished shards of all tasks in preparation."""

    def part(
        self, folder: Path, part: Part, chosen: Chosen
    ) -> tuple[Chosen, Iterable[NDArray[Any]], list[ShardInfo]]:
        """Those `chosen` that decode; their INDEX rows in the same order, some at a time; and the
        shards of this part of a task, which has this folder."""


class WrittenShards:
    """Those that were written by `ShardJob`s."""

    def __init__(self, finished: Finished) -> None:
        self._parts: dict[tuple[Path, Part], list[tuple[Job, ShardResult]]] = defaultdict(list)
        for job, result in finished:
            if isinstance(job, ShardJob):
                self._parts[job.folder, job.part].append((job, result))

    def part(
        self, folder: Path, part: Part, chosen: Chosen
    ) -> tuple[Chosen, Iterable[NDArray[Any]], list[ShardInfo]]:
        """As `Shards.part`."""
        own = self._parts[folder, part]
        bad = [image.id for _, result in own for image in result.bad]
        kept = chosen[~np.isin(chosen.ids, bad)]
        return kept, (job.rows() for job, _ in own), [result.shard for _, result in own]


def shard_jobs(
    root: Path, source: Source, planned: Sequence[TaskPlan], settings: Settings, first: int
) -> list[ShardJob]:
    """A job for every shard of these tasks, of which the first has the number `first`."""
    size, upright, resize = settings.shard_size, settings.upright, settings.resize
    every, jobs = source.images, []
    for number, task in enumerate(planned, first):
        for part, chosen in zip(PARTS, (task.train, task.val), strict=True):
            for shard, start in enumerate(range(0, len(chosen), size)):
                images = chosen[start : start + size]
                own = every.part(images.source) if isinstance(every, Divisible) else None
                jobs.append(ShardJob(root, images, upright, number, part, shard, resize, own=own))
    return jobs


def write_claimed(images: Images | None, job: Job, tick: Tick) -> tuple[str, ShardResult | None]:
    """As `write_once`, beside other processes: None where another one writes the shard now.

    A shard that is noted is not read once more: it was written a moment ago, by somebody else.
    """
    if noted := _kept(job, read=False):
        return job.name, noted
    with claimed(job.note("lock")) as mine:
        return write_once(images, job, tick) if mine else (job.name, None)


def write_once(images: Images | None, job: Job, tick: Tick) -> tuple[str, ShardResult]:
    """Does a job and notes it, unless that is done already; runs in a worker process.

    `images`: all of the source, where the job has not its own. Returns the job's name with the
    result. Raises WriteError.
    """
    if kept := _kept(job):
        tick(len(job.images))
        return job.name, kept
    bad: list[BadImage] = []
    rows, info = job.make(images, _samples(images, job, bad, tick))
    digest = atomic_write(job.note("npy"), encode_index(rows))
    note = _ShardNote(shard=info, bad=bad, rows_sha256=digest)
    atomic_write(job.note("json"), note.model_dump_json().encode())
    return job.name, ShardResult(info, bad)


def _kept(job: Job, read: bool = True) -> ShardResult | None:
    """The shard of an earlier session, if it is what this job would make; without `read` only its
    size is looked at."""
    try:
        note = _ShardNote.model_validate_json(read_bytes(job.note("json")))
        encoded = read_bytes(job.note("npy"))
        rows = decode_index(encoded)
        same_bytes = (
            hashlib.sha256(encoded).hexdigest() == note.rows_sha256
            and job.path.stat().st_size == note.shard.bytes
            and (not read or file_sha256(job.path) == note.shard.sha256)
        )
    except (OSError, ValueError):
        return None
    result = ShardResult(note.shard, note.bad)
    kept = result.kept(job.images)
    same_samples = (
        note.shard.name == job.shard
        and note.shard.samples == len(rows)
        and len(kept) + len(note.bad) == len(job.images)
        and np.array_equal(rows["id"], kept.ids)
        and np.array_equal(rows["label"], kept.labels)
    )
    return result if same_bytes and same_samples else None


def _samples(
    images: Images | None, job: Job, bad: list[BadImage], tick: Tick
) -> Iterator[ShardSample]:
    """The samples of a shard, each decoded once; those that do not decode are added to `bad`."""
    chosen = job.images
    numbers = range(len(chosen)) if job.own else chosen.source.tolist()
    images = job.own or images
    assert images is not None
    for number, id, label in zip(numbers, chosen.ids.tolist(), chosen.labels.tolist(), strict=True):
        try:
            image = job.stored(images.read(number))
        except BadImageError as error:
            bad.append(BadImage(id=id, name=images.name_of(number), reason=str(error)))
        else:
            yield ShardSample(id, label, *image)
        tick(1)
