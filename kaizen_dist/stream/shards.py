"""Shards: WebDataset tars of encoded images, and the index that finds a sample in them.

    FOLDER/train-000000.tar    000000000042.cls, 000000000042.jpg, 000000000043.jpg, ...
    FOLDER/train.index.npy     one INDEX row per sample, in the order of the shards

In come samples, out come tars and rows; and back: a row number in, the image's bytes out. A
key is the sample's id in twelve digits, KEY.cls holds the label in decimal and is absent for
an unlabelled sample, the image keeps its bytes and the extension they deserve. A part of a
folder (`train`, `val`, or `replay` in a replay store) is one `Split`.

The tars are POSIX ustar, without times, owners or anything else that differs between two
writings of the same samples: byte for byte what `webdataset.TarWriter` writes, which itself
would bring torch into every process that writes a shard.
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
from kaizen_dist.common.files import atomic_file, atomic_write
from kaizen_dist.stream.images import MOST_BYTES as MOST_BYTES_OF_IMAGE
from kaizen_dist.stream.images import BadImageError, identify
from kaizen_dist.stream.images import image_extension as image_extension
from kaizen_dist.stream.index import INDEX, Index, index_name
from kaizen_dist.stream.reader import CURE, UNKNOWN, Facts, Folder, Storage, StoredFile
from kaizen_dist.stream.tar_scan import KEY_DIGITS, UNLABELLED, read_entries, sample_key

MOST_SAMPLES = 10**KEY_DIGITS
MOST_BYTES = 1 << 43
"""Of a shard, which is read by position and fetched whole."""
SHA256 = r"^[0-9a-f]{64}$"
_MOST_SHARDS = 10**6  # the names have six digits


class Sample(NamedTuple):
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


# ---- writing ----------------------------------------------------------------------------


def write_shard(
    folder: Path, part: str, number: int, samples: Iterable[Sample]
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


def write_index(folder: Path, part: str, rows: NDArray[Any]) -> str:
    """Writes the index of a part and returns its file's sha256 in hex. Raises WriteError."""
    encoded = io.BytesIO()
    np.lib.format.write_array(encoded, rows, version=(1, 0), allow_pickle=False)
    return atomic_write(folder / index_name(part), encoded.getvalue())


def join_rows(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """INDEX rows of several shards as one array; no shards give no rows."""
    return np.concatenate([np.empty(0, INDEX), *parts])


def rebuild_index(shard_paths: Iterable[Path]) -> NDArray[Any]:
    """The INDEX rows of a part, from its tars alone, given in their order.

    Sizes are read from the images' headers. Raises DataError naming the shard and the key.
    """
    rows = []
    for number, path in enumerate(shard_paths):
        entries = list(read_entries(path))
        shard = StoredFile(Folder(path.parent), path.name)
        for entry in entries:
            try:
                image = identify(shard.read(entry.offset, entry.length))
            except BadImageError as error:
                raise DataError(f"{path}: sample {entry.key}: {error}") from error
            place = (number, entry.offset, entry.length)
            rows.append((*place, entry.label, int(entry.key), image.height, image.width))
    return np.array(rows, dtype=INDEX)


def _add_sample(tar: tarfile.TarFile, sample: Sample) -> tuple[int, int]:
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
    """One part of a folder of shards: its index, and its images' bytes.

    `infos` is what a manifest says of the shards, `storage` where they are opened if that is
    not the folder itself. Safe to read from several threads; in a pickle it is only its
    place, to be opened again.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        index: Index | NDArray[Any],
        infos: Sequence[ShardInfo] | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.folder, self.part, self.index = folder, part, index
        self._infos, self._storage = infos, storage or Folder(folder)
        # Rows are in the order of their shards: the last one knows how many there are.
        named = int(index[-1]["shard"]) + 1 if len(index) else 0
        if named > (_MOST_SHARDS if infos is None else len(infos)):
            index_file = self._storage.shown(index_name(part))
            raise DataError(f"{index_file}: damaged: it names {named} shards; {CURE}")
        count = named if infos is None else len(infos)
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
        folder = Path(folder)
        storage = storage or Folder(folder)
        index = Index(StoredFile(storage, index_name(part), index_facts))
        return cls(folder, part, index, infos, storage)

    def __reduce__(self) -> tuple[Any, ...]:
        return Split.open, (self.folder, self.part, self._infos, self._storage)

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
        return Split(self.folder, self.part, self.index[rows], self._infos, self._storage)

    def read(self, row: int) -> bytes:
        """The encoded image of a row. Raises DataError naming the shard and the key."""
        return self.read_all([row])[0]

    def read_all(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded images of rows: one look at the index and at each shard. Raises as `read`."""
        entries = self.index[np.asarray(rows, dtype=np.int64)]
        where = list(zip(entries["offset"].tolist(), entries["length"].tolist(), strict=True))
        images = [b""] * len(rows)
        by_shard: dict[int, list[int]] = {}
        for place, number in enumerate(entries["shard"].tolist()):
            by_shard.setdefault(self._number(rows[place], number), []).append(place)
        for row, (_, length) in zip(rows, where, strict=True):
            if length > MOST_BYTES_OF_IMAGE:
                raise self._damaged(row, f"no image has {length:,} bytes")
        for number, places in by_shard.items():
            try:
                found = self._shard(number).read_all([where[place] for place in places])
            except OSError as error:
                if len(places) == 1:
                    raise self._damaged(rows[places[0]], error.strerror or str(error)) from error
                # One by one, it is known whose bytes cannot be had.
                found = [self.read(rows[place]) for place in places]
            for place, data in zip(places, found, strict=True):
                if len(data) < where[place][1]:
                    what = f"only {len(data)} of its {where[place][1]} bytes are there"
                    raise self._damaged(rows[place], what)
                images[place] = data
        return images

    def sample(self, row: int) -> Sample:
        """All of a row, ready to be written to another shard. Raises DataError as `read`."""
        entry, data = self.index[row], self.read(row)
        try:
            extension = image_extension(data)
        except DataError as error:
            raise self._damaged(row, str(error)) from error
        id, label, height, width = (int(entry[f]) for f in ("id", "label", "height", "width"))
        return Sample(id, label, data, extension, height, width)

    def where(self, row: int) -> str:
        """A row's shard, by the path or URL that a person knows, and key."""
        entry = self.index[row]
        shard = self._storage.shown(shard_name(self.part, int(entry["shard"])))
        return f"{shard}: sample {sample_key(int(entry['id']))}"

    # ---- shards that first have to be fetched (ahead.py)

    @property
    def remote(self) -> bool:
        """Whether its shards are fetched from elsewhere."""
        return self._storage.fetches

    def shard_of(self, row: int) -> int:
        """The number of a row's shard. Raises DataError when there is no such shard."""
        return self._number(row, int(self.index[row]["shard"]))

    def is_ready(self, number: int) -> bool:
        """Whether a shard can be read at once."""
        return self._storage.is_ready(shard_name(self.part, number))

    def fetch(self, number: int) -> None:
        """Makes a shard ready. Raises DataError when it cannot be had."""
        self._storage.open(shard_name(self.part, number), self._facts(number))

    def _number(self, row: int, number: int) -> int:
        if number >= len(self.shards):
            index = self._storage.shown(index_name(self.part))
            raise DataError(
                f"{index}: damaged: row {row} names shard {number} of {len(self.shards)}; {CURE}"
            )
        return number

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
