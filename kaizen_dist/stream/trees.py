"""A tree of files, whether it lies in a folder or in a tar: by number, their bytes.

A tar is never extracted: its members are read where they lie. listing.py makes trees.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import open_to_read, read_bytes
from kaizen_dist.stream.images import MOST_BYTES, BadImageError


class Images(Protocol):
    """Encoded images by number; picklable, so that worker processes can read them."""

    def read(self, i: int) -> bytes:
        """The bytes of image `i`. Raises BadImageError if it is none, DataError naming it if it
        cannot be read."""

    def name_of(self, i: int) -> str:
        """What the source calls image `i`."""


@dataclass(frozen=True)
class Files:
    """Files below a folder; names are relative to it, or absolute."""

    root: Path
    names: Sequence[str]
    odd: Mapping[str, str] = field(default_factory=dict)
    """See `Tree.odd`."""

    def read(self, i: int) -> bytes:
        _refuse_odd(self.odd, self.names[i])
        path = self.root / self.names[i]
        try:
            return read_bytes(path, MOST_BYTES)
        except OSError as error:
            raise DataError(f"{printable(str(path))}: cannot be read: {error.strerror}") from error

    def name_of(self, i: int) -> str:
        return printable(self.names[i])


@dataclass
class Members:
    """Members of an uncompressed tar: their names and where their bytes lie in it."""

    path: Path
    names: Sequence[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    odd: Mapping[str, str] = field(default_factory=dict)
    """See `Tree.odd`."""
    _file: BinaryIO | None = field(default=None, repr=False)

    def read(self, i: int) -> bytes:
        _refuse_odd(self.odd, self.names[i])
        offset, size = int(self.offsets[i]), int(self.sizes[i])
        try:
            if self._file is None:
                self._file = open_to_read(self.path)
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DataError(f"{self.path}: cut short within member {self.name_of(i)}")
        return data

    def name_of(self, i: int) -> str:
        return printable(self.names[i])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _refuse_odd(odd: Mapping[str, str], name: str) -> None:
    if name in odd:
        raise BadImageError(odd[name])


@dataclass(frozen=True)
class Tree:
    """What a folder or tar holds, by paths below it with forward slashes, in no special order."""

    path: Path
    names: list[str]
    """Files, and with them what is `odd`."""
    folders: set[str]
    """Empty ones included."""
    sizes: NDArray[np.int64]
    """[n] bytes of the files."""
    offsets: NDArray[np.int64] | None = None
    """[n] where each file begins in the tar; None for a folder."""
    odd: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot be read, of each that is known beforehand to be no file, or too large."""
    closed: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot be opened, of each folder that cannot."""
    passed_over: frozenset[str] = frozenset()
    """Hidden entries and systems' folders, which are not looked at."""

    def images(self, chosen: NDArray[np.int64]) -> Images:
        """The files of these numbers, in this order."""
        names = [self.names[i] for i in chosen]
        if self.offsets is None:
            return Files(self.path, names, self.odd)
        return Members(self.path, names, self.offsets[chosen], self.sizes[chosen], self.odd)


def printable(name: str) -> str:
    """A file's name as text that every encoding and JSON can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
