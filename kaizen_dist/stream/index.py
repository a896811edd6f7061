"""The index of a part: one row a sample, found without reading the others.

    FOLDER/train.index.npy     a numpy array of INDEX rows, in the order of the shards

In comes the file, out come rows and columns. It is an ordinary .npy file that any program can
load or map; here a row is read by position, so that an index of any size is open at once and
costs no memory, and one that is cut short or lies on a dead mount is an error with a name.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.reader import CURE, Folder, StoredFile

INDEX = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("label", "<i4"),
        ("id", "<i8"),
        ("height", "<u4"),
        ("width", "<u4"),
    ]
)
"""A sample: its shard's number, where its image's bytes lie in it, label (-1: unlabelled), id
(its ordinal in the source, train part first), and the stored image's size in pixels."""

_LONGEST_HEADER = 10_000
_ROWS_AT_ONCE = 1 << 16


def index_name(part: str) -> str:
    """E.g. `train.index.npy`."""
    return f"{part}.index.npy"


def most_bytes(rows: int) -> int:
    """Bytes that the index file of so many rows has at most."""
    return _LONGEST_HEADER + rows * INDEX.itemsize


class Index:
    """An index file as an array of INDEX rows [n]: `index[7]` is a row, `index["label"]` a column
    [n], `index[rows]` the rows at the given numbers, a slice or a mask.

    Every access reads the file. Raises DataError when it is missing, damaged or something else,
    at first as well as later.
    """

    dtype = INDEX

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._start, self._count = self._parse_header()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, int | np.integer):
            row = range(self._count)[int(key)]
            return self._read([row], 1)[0]
        if isinstance(key, slice):
            return self._read(range(self._count)[key], 1)
        rows = np.asarray(key)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if np.any((rows < -self._count) | (rows >= self._count)):
            raise IndexError(f"{self._file} has {self._count} rows")
        return self._read((rows.ravel() % self._count).tolist(), 1).reshape(rows.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self._read([0], self._count)
        return whole.copy() if dtype is None else whole.astype(dtype)

    def _column(self, name: str) -> NDArray[Any]:
        column = np.empty(self._count, INDEX[name])
        for start in range(0, self._count, _ROWS_AT_ONCE):
            rows = self._read([start], min(_ROWS_AT_ONCE, self._count - start))
            column[start : start + len(rows)] = rows[name]
        return column

    def _read(self, rows: Sequence[int], count: int) -> NDArray[Any]:
        """`count` rows from each of `rows` on, joined."""
        length = count * INDEX.itemsize
        places = [(self._start + row * INDEX.itemsize, length) for row in rows]
        try:
            data = b"".join(self._file.read_all(places))
        except OSError as error:
            raise DataError(f"{self._file}: {error.strerror or error}; {CURE}") from error
        if len(data) < len(rows) * length:
            raise DataError(f"{self._file}: has been cut short; {CURE}")
        return np.frombuffer(data, INDEX)

    def _parse_header(self) -> tuple[int, int]:
        """Where the rows begin, and how many there are."""
        cure = "`kaizen-dist verify` on the stream lists all that is damaged"
        try:
            header = io.BytesIO(self._file.read(0, _LONGEST_HEADER))
            if np.lib.format.read_magic(header) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(header)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(header)
            size = self._file.size()
        except FileNotFoundError:
            raise DataError(f"{self._file}: the index is missing; {cure}") from None
        except DataError:
            raise
        except Exception as error:  # numpy's header parser raises nearly every kind
            raise DataError(f"{self._file}: not an index ({error}); {cure}") from error
        if dtype != INDEX or len(shape) != 1:
            told = f"dtype {dtype}, {len(shape)} axes"
            raise DataError(f"{self._file}: not an index ({told}); {cure}")
        start, count = header.tell(), int(shape[0])
        if count < 0 or start + count * INDEX.itemsize > size:
            raise DataError(f"{self._file}: not an index ({size:,} bytes, {count} rows); {cure}")
        return start, count


def open_index(path: Path) -> Index:
    """The index file of that path. Raises DataError as `Index`."""
    return Index(StoredFile(Folder(path.parent), path.name))
