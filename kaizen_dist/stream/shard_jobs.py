"""The shards of a stream in preparation: one job each, written once.

    STREAM/.prepare/task-00-train-000000.json  per finished shard: its description, its bad images
    STREAM/.prepare/task-00-train-000000.npy   and its INDEX rows (written first)

The bytes of a shard depend on its job alone, so any worker writes the same. A finished shard of an
interrupted session is kept if it is what the job would write.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from kaizen_dist.common.files import atomic_write, file_sha256, read_bytes
from kaizen_dist.common.locks import claimed
from kaizen_dist.stream.images import BadImageError, decode_whole
from kaizen_dist.stream.index import decode_index, encode_index
from kaizen_dist.stream.manifest import WORK_FOLDER
from kaizen_dist.stream.manifest_entries import BadImage, Part
from kaizen_dist.stream.pool import Tick
from kaizen_dist.stream.scenario import Chosen
from kaizen_dist.stream.shards import ShardInfo, ShardSample, shard_name, write_shard
from kaizen_dist.stream.sources.base import Source


@dataclass(frozen=True)
class ShardJob:
    """One shard: everything that its bytes depend on, beside the source."""

    root: Path
    """Of the stream."""
    task: int
    part: Part
    number: int
    images: Chosen
    resize: int | None
    upright: bool

    @property
    def folder(self) -> Path:
        """The folder of its task."""
        return self.root / f"task-{self.task:02d}"

    @property
    def name(self) -> str:
        """Its name in the work folder, e.g. `task-00-train-000000`."""
        return f"{self.folder.name}-{Path(shard_name(self.part, self.number)).stem}"

    def note(self, suffix: str) -> Path:
        """A file in the work folder."""
        return self.root / WORK_FOLDER / f"{self.name}.{suffix}"


class ShardResult(NamedTuple):
    """A finished shard, with its INDEX rows [n]."""

    shard: ShardInfo
    bad: list[BadImage]
    rows: NDArray[Any]


class _ShardNote(BaseModel):
    shard: ShardInfo
    bad: list[BadImage]
    rows_sha256: str


def write_claimed(source: Source, job: ShardJob, tick: Tick) -> tuple[str, ShardResult | None]:
    """As `write_once`, beside other processes: None where another one writes the shard now.

    A shard that is noted is not read once more: it was written a moment ago, by somebody else.
    """
    if noted := _kept(job, read=False):
        return job.name, noted
    with claimed(job.note("lock")) as mine:
        return write_once(source, job, tick) if mine else (job.name, None)


def write_once(source: Source, job: ShardJob, tick: Tick) -> tuple[str, ShardResult]:
    """Writes a shard and notes it, unless that is done already; runs in a worker process.

    Returns the job's name with the result. Raises WriteError.
    """
    if kept := _kept(job):
        tick(len(job.images))
        return job.name, kept
    bad: list[BadImage] = []
    rows, info = write_shard(job.folder, job.part, job.number, _samples(source, job, bad, tick))
    digest = atomic_write(job.note("npy"), encode_index(rows))
    note = _ShardNote(shard=info, bad=bad, rows_sha256=digest)
    atomic_write(job.note("json"), note.model_dump_json().encode())
    return job.name, ShardResult(info, bad, rows)


def _kept(job: ShardJob, read: bool = True) -> ShardResult | None:
    """The shard of an earlier session, if it is what this job would write; without `read` only its
    size is looked at."""
    path = job.folder / shard_name(job.part, job.number)
    try:
        note = _ShardNote.model_validate_json(read_bytes(job.note("json")))
        encoded = read_bytes(job.note("npy"))
        rows = decode_index(encoded)
        same_bytes = (
            hashlib.sha256(encoded).hexdigest() == note.rows_sha256
            and path.stat().st_size == note.shard.bytes
            and (not read or file_sha256(path) == note.shard.sha256)
        )
    except (OSError, ValueError):
        return None
    images = job.images
    bad = np.isin(images.ids, [image.id for image in note.bad])
    same_samples = (
        note.shard.name == path.name
        and note.shard.samples == len(rows)
        and np.count_nonzero(bad) == len(note.bad)
        and np.array_equal(rows["id"], images.ids[~bad])
        and np.array_equal(rows["label"], images.labels[~bad])
    )
    return ShardResult(note.shard, note.bad, rows) if same_bytes and same_samples else None


def _samples(
    source: Source, job: ShardJob, bad: list[BadImage], tick: Tick
) -> Iterator[ShardSample]:
    """The samples of a shard, each decoded once; those that do not decode are added to `bad`."""
    chosen = job.images
    numbers = (chosen.source.tolist(), chosen.ids.tolist(), chosen.labels.tolist())
    for number, id, label in zip(*numbers, strict=True):
        try:
            image = decode_whole(source.read(number), job.resize, job.upright)
        except BadImageError as error:
            bad.append(BadImage(id=id, name=source.name_of(number), reason=str(error)))
        else:
            yield ShardSample(id, label, *image)
        tick(1)
