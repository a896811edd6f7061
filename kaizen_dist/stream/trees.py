"""A tree of files, whether it lies in a folder or in a tar.

In comes a path, out come the files in it and, by number, their bytes. A tar is never
extracted: its members are read where they lie. A compressed one is decompressed once into a
work folder, since nothing in it can be found without reading all before it.
"""

import gzip
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.errors import DataError
from kaizen_dist.files import atomic_file
from kaizen_dist.stream.progress import Meter

_GZIP_MAGIC = b"\x1f\x8b"


class Images(Protocol):
    """Encoded images by number; picklable, so that worker processes can read them."""

    def read(self, i: int) -> bytes:
        """The bytes of image `i`. Raises DataError naming it."""

    def name_of(self, i: int) -> str:
        """What the source calls image `i`."""


@dataclass(frozen=True)
class Files:
    """Files below a folder; names are relative to it, or absolute."""

    root: Path
    names: Sequence[str]

    def read(self, i: int) -> bytes:
        path = self.root / self.names[i]
        try:
            return path.read_bytes()
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
    _file: BinaryIO | None = field(default=None, repr=False)

    def read(self, i: int) -> bytes:
        offset, size = int(self.offsets[i]), int(self.sizes[i])
        try:
            if self._file is None:
                self._file = self.path.open("rb")
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


@dataclass(frozen=True)
class Tree:
    """What a folder or tar holds: `names` are paths of files below it, in no special order,
    with forward slashes; `folders` those of folders, empty ones included; `sizes` [n] bytes."""

    path: Path
    names: list[str]
    folders: set[str]
    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64] | None = None
    """[n] where each file begins in the tar; None for a folder."""

    def images(self, chosen: NDArray[np.int64]) -> Images:
        """The files of these numbers, in this order."""
        names = [self.names[i] for i in chosen]
        if self.offsets is None:
            return Files(self.path, names)
        return Members(self.path, names, self.offsets[chosen], self.sizes[chosen])


def printable(name: str) -> str:
    """A file's name as text that every encoding and JSON can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_tree(path: Path, work: Path, progress: bool = True) -> Tree:
    """Lists a folder, a `.tar`, or a `.tar.gz`, which is decompressed to `work`/source.tar.

    Links are followed. Raises DataError when the path is missing, cannot be read, is neither
    folder nor tar, or is a tar that is damaged or cut short; WriteError when `work` is full.
    """
    if not path.exists():
        raise DataError(f"there is no {path}; check the path of the source")
    try:
        if path.is_dir():
            return _list_folder(path, progress)
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
    except OSError as error:
        name = printable(str(error.filename or path))
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    return _list_tar(_decompressed(path, work, progress) if compressed else path, path, progress)


# ---- a folder ---------------------------------------------------------------------------


def _list_folder(root: Path, progress: bool) -> Tree:
    names, sizes, folders = [], [], set()
    waiting = [""]
    with Meter(f"listing {root}", None, "files", shown=progress) as meter:
        while waiting:
            below = waiting.pop()
            with os.scandir(root / below) as entries:
                for entry in entries:
                    name = posixpath.join(below, entry.name)
                    if entry.is_dir():
                        folders.add(name)
                        waiting.append(name)
                    else:
                        names.append(name)
                        sizes.append(entry.stat().st_size)
            meter.advance(len(names) - meter.done)
    return Tree(root, names, folders, np.array(sizes, np.int64))


# ---- a tar ------------------------------------------------------------------------------


def _decompressed(path: Path, work: Path, progress: bool) -> Path:
    """The tar inside a gzip file; an earlier, finished decompression is taken as it is."""
    target = work / "source.tar"
    if target.exists():
        return target
    total = path.stat().st_size >> 20
    with (
        atomic_file(target) as plain,
        path.open("rb") as file,
        gzip.open(file) as source,
        Meter(f"decompressing {path.name}", total, "MiB", shown=progress) as meter,
    ):
        while piece := _read_piece(path, source):
            plain.write(piece)
            meter.advance((file.tell() >> 20) - meter.done)
    return target


def _read_piece(path: Path, source: gzip.GzipFile) -> bytes:
    try:
        return source.read(1 << 20)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: damaged or cut short: {error}") from error


def _list_tar(path: Path, shown_as: Path, progress: bool) -> Tree:
    folders: set[str] = set()
    place: dict[str, tuple[int, int]] = {}
    try:
        with (
            tarfile.open(path, "r:") as tar,
            Meter(f"listing {shown_as.name}", None, "files", shown=progress) as meter,
        ):
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # or a million of them stay in memory
                name = posixpath.normpath(member.name.lstrip("/"))
                if member.isdir():
                    folders.add(name)
                else:
                    place[name] = _place(member, name, place, shown_as)
                meter.advance()
            _check_end(path, tar.offset, shown_as)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shown_as}: not a tar, damaged or cut short: {error}") from error
    for name in place:
        folders.update(_parents(name))
    offsets, sizes = np.array(list(place.values()), np.int64).reshape(-1, 2).T
    return Tree(path, list(place), folders - {"."}, sizes, offsets)


def _place(
    member: tarfile.TarInfo, name: str, before: dict[str, tuple[int, int]], shown_as: Path
) -> tuple[int, int]:
    """Offset and size of a member's bytes; a link has those of what it points to."""
    if member.isreg() and not member.issparse():
        return member.offset_data, member.size
    target = member.linkname
    if member.issym():
        target = posixpath.join(posixpath.dirname(name), target)
    if (member.issym() or member.islnk()) and posixpath.normpath(target) in before:
        return before[posixpath.normpath(target)]
    raise DataError(
        f"{shown_as}: member {printable(name)} is neither a plain file, nor a folder, nor a link "
        "to a file before it; write the tar again without it"
    )


def _check_end(path: Path, offset: int, shown_as: Path) -> None:
    """tarfile takes a damaged header for the end of the archive; the true end is zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{shown_as}: damaged or cut short at byte {offset} of the tar, which has no end mark "
            "there; copy or download it again"
        )


def _parents(name: str) -> Iterable[str]:
    while name := posixpath.dirname(name):
        yield name
