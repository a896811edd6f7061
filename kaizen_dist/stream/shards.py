"""Shards: WebDataset tars of encoded images, and the index that finds a sample in them.

    FOLDER/train-000000.tar    000000000042.cls, 000000000042.jpg, 000000000043.jpg, ...
    FOLDER/train.index.npy     one INDEX row per sample, in the order of the shards

A key is the sample's id in twelve digits, KEY.cls holds the label in decimal and is absent for
an unlabelled sample, the image keeps its bytes and the extension of its format. A part of a
folder (`train`, `val`, or `replay` in a replay store) is one `Split`.

The tars are POSIX ustar, without times or owners, so that the same samples give the same bytes:
those that `webdataset.TarWriter` writes, which would import torch into every process.
"""

import hashlib
import io
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file
from kaizen_dist.stream.image_name import image_name
from kaizen_dist.stream.images import MOST_BYTES as MOST_BYTES_OF_IMAGE
from kaizen_dist.stream.images import BadImageError, identify
from kaizen_dist.stream.index import INDEX, UNLABELLED, index_name, read_index, relabelled
from kaizen_dist.stream.reader import CURE, UNKNOWN, Facts, Folder, Storage, StoredFile

KEY_DIGITS = 12
MOST_SAMPLES = 10**KEY_DIGITS
MOST_BYTES = 1 << 43
"""Of a shard, which is read by position and fetched whole."""
SHA256 = r"^[0-9a-f]{64}$"
_MOST_SHARDS = 10**6  # the names have six digits


class ShardSample(NamedTuple):
    """An encoded image with what an INDEX row says of it."""

    id: int
    label: int
    data: bytes
    extension: str
    height: int
    width: int


class ShardInfo(BaseModel):
    """What a manifest says of one shard file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[\w-]+\.tar$", max_length=60)
    samples: int = Field(ge=0, le=MOST_SAMPLES)
    bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str = Field(pattern=SHA256)

    @property
    def facts(self) -> Facts:
        """By which the file is known to be whole."""
        return Facts(self.bytes, self.sha256)


def shard_name(part: str, number: int) -> str:
    """E.g. `train-000000.tar`."""
    return f"{part}-{number:06d}.tar"


def sample_key(id: int) -> str:
    """The key of a sample in its tar, e.g. `000000000042`."""
    return f"{id:0{KEY_DIGITS}d}"


def named_sample(id: int, name: str) -> str:
    """A sample in messages: by its key, and by its original name where that is known."""
    return f"sample {sample_key(id)}" + (f" ({name})" if name else "")


# ---- writing ----------------------------------------------------------------------------


def write_shard(
    folder: Path, part: str, number: int, samples: Iterable[ShardSample]
) -> tuple[NDArray[Any], ShardInfo]:
    """Writes one shard, whole or not at all, and returns its INDEX rows and its description.

    The same samples give the same bytes. Samples are taken one at a time. Raises WriteError.
    """
    rows = []
    with atomic_file(folder / shard_name(part, number)) as file:
        sink = _HashingSink(file)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for sample in samples:
                offset, length = _add_sample(tar, sample)
                place = (number, offset, length)
                rows.append((*place, sample.label, sample.id, sample.height, sample.width))
    info = ShardInfo(
        name=shard_name(part, number),
        samples=len(rows),
        bytes=sink.size,
        sha256=sink.digest.hexdigest(),
    )
    return np.array(rows, dtype=INDEX), info


def _add_sample(tar: tarfile.TarFile, sample: ShardSample) -> tuple[int, int]:
    """Adds the members of a sample in alphabetical order; where its image's bytes lie."""
    members = {sample.extension: sample.data}
    if sample.label != UNLABELLED:
        members["cls"] = str(sample.label).encode()
    offset = 0
    for extension, data in sorted(members.items()):
        header = tarfile.TarInfo(f"{sample_key(sample.id)}.{extension}")
        header.size, header.mode = len(data), 0o444
        if extension == sample.extension:
            offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(header, io.BytesIO(data))
    return offset, len(sample.data)


class _HashingSink:
    """Passes what is written on to a file, and knows its size and sha256 at the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


# ---- reading ----------------------------------------------------------------------------


class Split:
    """One part of a folder of shards: its INDEX rows, and its images' bytes.

    `infos` is what a manifest says of the shards, `storage` where they are opened if that is
    not the folder itself. Safe to read from several threads; the pickle of one that was
    opened holds only its place, and it is opened again.

    Raises:
        DataError: if the index names shards that do not exist.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        index: NDArray[Any],
        infos: Sequence[ShardInfo] | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.folder, self.part, self.index = folder, part, index
        self._infos, self._storage = infos, storage or Folder(folder)
        self._opened = False
        named = int(index["shard"].max()) + 1 if len(index) else 0
        count = named if infos is None else len(infos)
        if named > min(count, _MOST_SHARDS):
            file = self._storage.shown(index_name(part))
            raise DataError(f"{file}: damaged: it names {named} shards; {CURE}")
        self.shards: list[Path] = [folder / shard_name(part, n) for n in range(count)]
        self._open: OrderedDict[int, StoredFile] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: Path,
        part: str,
        infos: Sequence[ShardInfo] | None = None,
        storage: Storage | None = None,
        index_facts: Facts = UNKNOWN,
    ) -> "Split":
        """Opens `FOLDER/PART.index.npy`. Raises DataError when it is missing or no index."""
        storage = storage or Folder(folder)
        rows = read_index(StoredFile(storage, index_name(part), index_facts))
        split = cls(folder, part, rows, infos, storage)
        split._opened = True
        return split

    def __reduce__(self) -> tuple[Any, ...]:
        if self._opened:
            return Split.open, (self.folder, self.part, self._infos, self._storage)
        return Split, (self.folder, self.part, self.index, self._infos, self._storage)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> NDArray[np.int64]:
        """[n] class numbers, -1 where unlabelled."""
        return self.index["label"].astype(np.int64)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[n] the samples' ids, unique over the whole stream."""
        return self.index["id"].astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """The split that has these rows only."""
        return self._with(self.index[rows])

    def relabelled(self, late: NDArray[Any]) -> "Split":
        """The split with labels that came later, by LABELS rows; see late_labels.py."""
        if not len(late):
            return self
        return self._with(relabelled(self.index, late))

    def _with(self, index: NDArray[Any]) -> "Split":
        return Split(self.folder, self.part, index, self._infos, self._storage)

    def read(self, row: int) -> bytes:
        """The encoded image of a row. Raises DataError naming the shard and the key."""
        return self.read_all([row])[0]

    def read_all(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded images of rows, each shard looked up once. Raises as `read`."""
        entries = self.index[np.asarray(rows, dtype=np.int64)]
        for row, length in zip(rows, entries["length"].tolist(), strict=True):
            if length > MOST_BYTES_OF_IMAGE:
                raise self._damaged(row, f"no image has {length:,} bytes")
        images = [b""] * len(rows)
        for number in np.unique(entries["shard"]).tolist():
            places = np.flatnonzero(entries["shard"] == number).tolist()
            ranges = entries[["offset", "length"]][places].tolist()
            try:
                found = self._shard(number).read_all(ranges)
            except OSError as error:
                if len(places) == 1:
                    raise self._damaged(rows[places[0]], error.strerror or str(error)) from error
                # One by one, to name the sample that cannot be read.
                found = [self.read(rows[place]) for place in places]
            for place, (_, length), data in zip(places, ranges, found, strict=True):
                if len(data) < length:
                    what = f"only {len(data)} of its {length} bytes are there"
                    raise self._damaged(rows[place], what)
                images[place] = data
        return images

    def sample(self, row: int) -> ShardSample:
        """A row's sample, ready to be written to another shard. Raises DataError as `read`."""
        entry, data = self.index[row], self.read(row)
        try:
            extension = identify(data).extension
        except BadImageError as error:
            raise self._damaged(row, str(error)) from error
        id, label, height, width = (int(entry[f]) for f in ("id", "label", "height", "width"))
        return ShardSample(id, label, data, extension, height, width)

    def where(self, row: int) -> str:
        """A row's shard, by its path or URL, its key, and its original name."""
        shard = self._storage.shown(shard_name(self.part, self.shard_of(row)))
        return f"{shard}: {named_sample(int(self.index['id'][row]), self.name(row))}"

    def name(self, row: int) -> str:
        """The original name of a row's image; "" where it is not at hand."""
        return image_name(self.folder, self.part, int(self.index["id"][row]))

    @property
    def remote(self) -> bool:
        """Whether its shards have to be fetched first (prefetch.py)."""
        return self._storage.fetches

    def shard_of(self, row: int) -> int:
        """The number of a row's shard."""
        return int(self.index[row]["shard"])

    def is_ready(self, number: int) -> bool:
        """Whether a shard can be read at once."""
        return self._storage.is_ready(shard_name(self.part, number))

    def fetch(self, number: int) -> None:
        """Makes a shard ready. Raises DataError when it cannot be fetched."""
        self._storage.open(shard_name(self.part, number), self._facts(number))

    def _facts(self, number: int) -> Facts:
        return self._infos[number].facts if self._infos is not None else UNKNOWN

    def _shard(self, number: int) -> StoredFile:
        with self._lock:
            if number not in self._open:
                name = shard_name(self.part, number)
                self._open[number] = StoredFile(self._storage, name, self._facts(number))
                if len(self._open) > self._storage.most_open:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _damaged(self, row: int, what: str) -> DataError:
        return DataError(f"{self.where(row)} cannot be read: {what}; {CURE}")
