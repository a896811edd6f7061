"""`--link`: tars that exist already become the shards of tasks, and no byte of them is copied.

    STREAM/task-00/train-000000.tar            a link to the first tar that the part has images in
    STREAM/.prepare/tar-000000.json, .npy      per indexed tar: see shard_jobs.py

One job reads one tar, with the images that all tasks take from it, so that its sha256 is computed
once. The rows of a part are in the order in which a copy would have them: a training sees the same
batches. A link is absolute: streams are moved more often than the tars that they share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_link, file_sha256
from kaizen_dist.stream.files.tar_members import TarMembers
from kaizen_dist.stream.images import BadImageError, EncodedImage, decode_whole
from kaizen_dist.stream.index import INDEX, join_rows
from kaizen_dist.stream.manifest_entries import Part
from kaizen_dist.stream.numbers import Numbers
from kaizen_dist.stream.scenario import Chosen, TaskPlan
from kaizen_dist.stream.shard_jobs import Finished, Job
from kaizen_dist.stream.shards import ShardInfo, ShardSample, shard_name
from kaizen_dist.stream.sources.base import Images, Source

_MOST_LINKS = 100_000
"""Of one `prepare` or `extend`: stream.json describes each of them, and is read whole."""
_TURNED = (
    "its EXIF orientation asks for a turn, which a tar that is only linked cannot have: leave out "
    "--link, or begin the stream with --as-stored"
)


@dataclass(frozen=True)
class TarJob(Job):
    """A tar that is indexed where it lies; its images come in the order of the tar."""

    number: int
    """Of the tar in the source."""
    tar: Path

    @property
    def name(self) -> str:
        return Path(self.shard).stem

    @property
    def path(self) -> Path:
        return self.tar

    @property
    def shard(self) -> str:
        return shard_name("tar", self.number)

    def stored(self, data: bytes) -> EncodedImage:
        image = decode_whole(data, upright=self.upright)
        if image.data is not data:
            raise BadImageError(_TURNED)
        return image

    def make(
        self, images: Images | None, samples: Iterator[ShardSample]
    ) -> tuple[NDArray[Any], ShardInfo]:
        """As `Job.make`. Raises DataError where the tar changes meanwhile."""
        members = _members(images)
        offsets = members.offsets[self.images.source].tolist()
        offset_of = dict(zip(self.images.ids.tolist(), offsets, strict=True))
        rows = [
            (self.number, offset_of[s.id], len(s.data), s.label, s.id, s.height, s.width)
            for s in samples
        ]
        try:
            sha256 = file_sha256(self.tar)
        except OSError as error:
            raise DataError(f"{self.tar}: cannot be read: {error.strerror}") from error
        members.check_unchanged(self.number)
        size = members.identities[self.number].size
        info = ShardInfo(name=self.shard, samples=len(rows), bytes=size, sha256=sha256)
        return np.array(rows, dtype=INDEX), info


def tar_jobs(
    root: Path, source: Source, planned: Sequence[TaskPlan], upright: bool
) -> list[TarJob]:
    """A job for every tar that these tasks take images from.

    Raises UsageError where they would need more links than a stream can list.
    """
    members = _members(source.images)
    parts = [chosen for task in planned for chosen in (task.train, task.val)]
    links = sum(len(np.unique(members.tar_of[chosen.source])) for chosen in parts)
    if links > _MOST_LINKS:
        raise UsageError(
            f"{links:,} links, one from each task to each tar that it has images in; at most "
            f"{_MOST_LINKS:,} can be listed: ask for fewer tasks, or leave out --link"
        )
    images = Chosen(*(np.concatenate(c) for c in zip(*map(_columns, parts), strict=True)))
    images = images[np.lexsort((members.offsets[images.source], members.tar_of[images.source]))]
    numbers, starts = np.unique(members.tar_of[images.source], return_index=True)
    bounds = zip(starts, [*starts[1:], len(images)], strict=True)
    return [
        TarJob(root, images[start:end], upright, number, members.path(number))
        for number, (start, end) in zip(numbers.tolist(), bounds, strict=True)
    ]


class IndexedTars:
    """The tars of tasks in preparation, once all of their jobs are done."""

    def __init__(self, finished: Finished) -> None:
        rows = join_rows(job.rows() for job, _ in finished)
        self._rows = rows[np.argsort(rows["id"])]
        self._tars = {
            job.number: (job.tar, result.shard)
            for job, result in finished
            if isinstance(job, TarJob)
        }

    def part(
        self, folder: Path, part: Part, chosen: Chosen
    ) -> tuple[Chosen, Iterable[NDArray[Any]], list[ShardInfo]]:
        """As `Shards.part`; makes the links. Raises WriteError."""
        kept = chosen[np.isin(chosen.ids, self._rows["id"])]
        rows = self._rows[np.searchsorted(self._rows["id"], kept.ids)]
        numbers, rows["shard"], samples = np.unique(
            rows["shard"], return_inverse=True, return_counts=True
        )
        shards = []
        for n, (number, count) in enumerate(zip(numbers.tolist(), samples.tolist(), strict=True)):
            tar, whole = self._tars[number]
            shard = whole.model_copy(update={"name": shard_name(part, n), "samples": count})
            atomic_link(folder / shard.name, tar)
            shards.append(shard)
        return kept, [rows], shards


def _members(images: Images | None) -> TarMembers:
    assert isinstance(images, TarMembers), "SourceKind.in_tars says so"
    return images


def _columns(chosen: Chosen) -> tuple[Numbers, ...]:
    return chosen.source, chosen.ids, chosen.labels
