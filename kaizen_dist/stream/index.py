"""The index of a part: one row a sample, which says where its image lies.

    FOLDER/train.index.npy     a numpy array of INDEX rows, in the order of the shards

An ordinary .npy file. It is read whole and held in memory, 36 bytes a sample: 46 MB for
ImageNet's 1.28 million images.
"""

import hashlib
import io
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file
from kaizen_dist.stream.reader import StoredFile

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

UNLABELLED = -1
"""The label of a sample that has none; it is not written to the tar."""

LABELS = np.dtype([("id", "<i8"), ("label", "<i4")])
"""A label that came later, see late_labels.py: an image's id, and its label; -1 takes the label
away."""

_LONGEST_HEADER = 10_000
_CURE = "`kaizen-dist verify` on the stream lists all that is damaged"


def index_name(part: str) -> str:
    """E.g. `train.index.npy`."""
    return f"{part}.index.npy"


def max_index_bytes(rows: int) -> int:
    """Largest size in bytes of an index file of this many rows."""
    return _LONGEST_HEADER + rows * INDEX.itemsize


def encode_index(rows: NDArray[Any]) -> bytes:
    """INDEX or other rows [n] as the bytes of a .npy file."""
    encoded = io.BytesIO()
    np.lib.format.write_array(encoded, rows, version=(1, 0), allow_pickle=False)
    return encoded.getvalue()


def decode_index(data: bytes, kind: np.dtype[Any] = INDEX) -> NDArray[Any]:
    """INDEX or other rows [n] from the bytes of a .npy file. Raises ValueError for anything
    else."""
    try:
        rows = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's header parser raises nearly every kind
        raise ValueError(str(error)) from error
    if rows.dtype != kind or rows.ndim != 1:
        raise ValueError(f"dtype {rows.dtype}, {rows.ndim} axes")
    return rows


def write_index(folder: Path, part: str, rows: NDArray[Any]) -> str:
    """Writes the index of a part and returns its file's sha256 in hex. Raises WriteError."""
    return join_index(folder, part, len(rows), [rows])


def join_index(folder: Path, part: str, count: int, blocks: Iterable[NDArray[Any]]) -> str:
    """As `write_index`, of `count` rows that come block by block."""
    header, digest = io.BytesIO(), hashlib.sha256()
    shape = {"descr": INDEX.descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with atomic_file(folder / index_name(part)) as file:
        for data in chain([header.getvalue()], (rows.tobytes() for rows in blocks)):
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def read_index(file: StoredFile) -> NDArray[Any]:
    """The INDEX rows [n] of an index file. Raises DataError if it is missing or no index."""
    try:
        return decode_index(file.read(0, sys.maxsize))
    except FileNotFoundError:
        raise DataError(f"{file}: the index is missing; {_CURE}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not an index ({error}); {_CURE}") from error


def join_rows(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """INDEX rows of several shards as one array; no shards give no rows."""
    return np.concatenate([np.empty(0, INDEX), *parts])


def joined(given: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All LABELS rows, one an image: the last that was given for it."""
    newest_first = np.concatenate([np.empty(0, LABELS), *given][::-1])
    _, first = np.unique(newest_first["id"], return_index=True)
    return newest_first[first]


def relabelled(index: NDArray[Any], late: NDArray[Any]) -> NDArray[Any]:
    """INDEX rows with the labels that came later, by LABELS rows with an id each once."""
    if not len(late):
        return index
    places = np.searchsorted(late["id"], index["id"]).clip(max=len(late) - 1)
    found = late["id"][places] == index["id"]
    changed = index.copy()
    changed["label"][found] = late["label"][places[found]]
    return changed
