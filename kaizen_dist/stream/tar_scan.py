"""A shard as its own headers tell it, whatever state the file is in.

In comes a tar, out come its samples (key, label, place of the image), or a DataError that
names the byte and the key where the file stops being a shard. Needs no index, and trusts
nothing that it reads: `verify` walks here, and so does whoever rebuilds an index.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import open_to_read

UNLABELLED = -1
"""The label of a sample that has none; it is not written to the tar."""

KEY_DIGITS = 12
_BLOCK = tarfile.BLOCKSIZE


def sample_key(id: int) -> str:
    """The key of a sample in its tar, e.g. `000000000042`."""
    return f"{id:0{KEY_DIGITS}d}"


class Entry(NamedTuple):
    """A sample as its tar tells it; `offset` and `length` are those of the image, in bytes."""

    key: str
    extension: str
    label: int
    offset: int
    length: int


def read_entries(path: Path) -> Iterator[Entry]:
    """Walks a shard's own headers, in order, without an index.

    Raises DataError, after all the entries before, for anything that is not a whole, regular
    shard: a damaged header, a member that is no file, a sample without an image or with two,
    a label that is no number, a tar that is cut short. It names file, byte and key.
    """
    try:
        with open_to_read(path) as file:
            yield from _group_members(path, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _group_members(path: Path, file: BinaryIO) -> Iterator[Entry]:
    key, label, image = "", UNLABELLED, None
    for name, offset, length in _walk_members(path, file):
        member_key, _, extension = name.partition(".")
        if not (member_key.isascii() and member_key.isdigit() and len(member_key) == KEY_DIGITS):
            raise DataError(f"{path}: member {name!r} has no key of {KEY_DIGITS} digits")
        if member_key != key:
            if key:
                yield _entry(path, key, label, image)
            key, label, image = member_key, UNLABELLED, None
        if extension == "cls":
            label = _parse_label(path, key, os.pread(file.fileno(), min(length, 16), offset))
        elif image is not None:
            raise DataError(f"{path}: sample {key} has two images")
        else:
            image = (extension, offset, length)
    if key:
        yield _entry(path, key, label, image)


def _entry(path: Path, key: str, label: int, image: tuple[str, int, int] | None) -> Entry:
    if image is None:
        raise DataError(f"{path}: sample {key} has no image")
    extension, offset, length = image
    return Entry(key, extension, label, offset, length)


def _parse_label(path: Path, key: str, text: bytes) -> int:
    if not (text.isdigit() and len(text) <= 10 and int(text) < 2**31):
        raise DataError(f"{path}: sample {key} has the label {text!r}, which is no class number")
    return int(text)


def _walk_members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of every member; one header at a time, so that no damage to
    the file can do more than end the walk."""
    end = os.fstat(file.fileno()).st_size
    position = 0
    while True:
        block = os.pread(file.fileno(), _BLOCK, position)
        if block == bytes(_BLOCK):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            short = "cut short" if position + _BLOCK > end else f"damaged ({error})"
            raise DataError(f"{path}: {short} at byte {position}, where a header is due") from None
        offset = position + _BLOCK
        if not header.isreg() or header.size < 0:
            raise DataError(f"{path}: member {header.name!r} at byte {position} is no plain file")
        if offset + header.size > end:
            raise DataError(f"{path}: cut short within member {header.name!r}")
        yield header.name, offset, header.size
        position = offset + -(-header.size // _BLOCK) * _BLOCK
