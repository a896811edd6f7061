"""The files of a source, in a folder or in a tar, listed once and read by number.

A tar is never extracted: its members are read where they lie. A compressed tar is decompressed
once into the work folder of `prepare`, because nothing in it can be found without reading all
before it. Entries that are no readable files (pipes, broken links) are recorded, not raised:
class_folders.py decides whether they matter.
"""

import gzip
import hashlib
import os
import posixpath
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file, open_to_read, read_bytes
from kaizen_dist.stream.files.folders import Kind, is_passed_over, walk
from kaizen_dist.stream.files.name_list import NameList, PickedNames
from kaizen_dist.stream.images import MOST_BYTES, BadImageError
from kaizen_dist.stream.numbers import Numbers, compact

_GZIP_MAGIC = b"\x1f\x8b"
_TO_A_FOLDER = "is a link to a folder; write the tar again with `tar --dereference`"
_NO_FILE = (0, 0, "neither a plain file, nor a link to a file before it")


@dataclass
class SourceFiles:
    """Images of a source that are files: of a folder, or (with `offsets`) of a tar.

    Names are relative to the folder, or absolute.
    """

    path: Path
    names: Sequence[str]
    odd: Mapping[str, str] = field(default_factory=dict)
    """See `FileTree.odd`."""
    sizes: Numbers | None = None
    """[n] bytes; with `offsets` only."""
    offsets: NDArray[np.int64] | None = None
    """[n] where each begins in the tar."""

    def read(self, i: int) -> bytes:
        """As `sources.base.Images.read`."""
        name = self.names[i]
        if name in self.odd:
            raise BadImageError(self.odd[name])
        path = self.path if self.offsets is not None else self.path / name
        try:
            if self.offsets is None or self.sizes is None:
                return read_bytes(path, MOST_BYTES)
            size = int(self.sizes[i])
            # Opened for one image: there may be more tars, and parts of one, than may be open.
            with open_to_read(path) as tar:
                data = os.pread(tar.fileno(), size, int(self.offsets[i]))
        except OSError as error:
            raise DataError(f"{storable(str(path))}: cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DataError(f"{path}: cut short within member {self.name_of(i)}")
        return data

    def name_of(self, i: int) -> str:
        """As `sources.base.Images.name_of`."""
        return storable(self.names[i])

    def part(self, numbers: Numbers) -> "SourceFiles":
        """As `sources.base.Divisible.part`."""
        names = PickedNames(self.names, numbers)
        odd = {name: self.odd[name] for name in names if name in self.odd} if self.odd else {}
        if self.offsets is None or self.sizes is None:
            return SourceFiles(self.path, names, odd)
        return SourceFiles(self.path, names, odd, self.sizes[numbers], self.offsets[numbers])


@dataclass(frozen=True)
class FileTree:
    """What a folder or tar holds, by paths below it with forward slashes, in no special order."""

    path: Path
    names: Sequence[str]
    """Files, including `odd` ones."""
    folders: set[str]
    """Including empty ones."""
    sizes: Numbers
    """[n] bytes of the files."""
    offsets: NDArray[np.int64] | None
    """[n] where each file begins in the tar; None for a folder."""
    odd: Mapping[str, str]
    """Why it cannot be read, of each entry that is no file, or too large."""
    closed: Mapping[str, str]
    """Why it cannot be opened, of each such folder."""
    passed_over: frozenset[str]
    """Hidden entries and system folders."""

    def images(self, chosen: Numbers) -> SourceFiles:
        """The files of these numbers, in this order."""
        return SourceFiles(self.path, self.names, self.odd, self.sizes, self.offsets).part(chosen)


def storable(name: str) -> str:
    """A file's name as text that every encoding and JSON can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_tree(path: Path, work: Path, progress: bool = True) -> FileTree:
    """Lists a folder, a `.tar`, or a `.tar.gz`, which is decompressed to `work`/source.tar.

    Links are followed (folders.py). Raises DataError when the path is missing, cannot be read,
    is neither folder nor tar, or is a tar that is damaged or cut short; WriteError when `work`
    is full.
    """
    if not path.exists():
        raise DataError(f"there is no {path}; check the path of the source")
    try:
        if path.is_dir():
            return _list_folder(path, progress)
        tar = path if gzip_digest(path) is None else _decompressed(path, work, progress)
    except OSError as error:
        name = storable(str(error.filename or path))
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    return list_tar(tar, path, progress)


def gzip_digest(path: Path) -> str | None:
    """A digest in hex of a gzip file's size and checksum, by which a change is noticed without
    decompressing it; None for any other file. Raises OSError."""
    with open_to_read(path) as file:
        if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            return None
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))  # checksum and size of the content
        return hashlib.sha256(b"%d " % size + file.read(8)).hexdigest()


def _list_folder(root: Path, progress: bool) -> FileTree:
    names, sizes, folders = NameList(), array("q"), set()
    odd, closed, passed_over = {}, {}, set()
    with ProgressBar(f"listing {storable(str(root))}", None, "files", shown=progress) as bar:
        for name, kind, size, why in walk(root):
            if kind is Kind.PASSED_OVER:
                passed_over.add(name)
            elif kind is Kind.CLOSED:
                closed[name] = why
            elif kind is Kind.FOLDER:
                folders.add(name)
            else:
                names.append(name)
                sizes.append(size)
                bar.advance()
                if why := why or _too_large(size):
                    odd[name] = why
    of_all = compact(np.frombuffer(sizes, np.int64))
    return FileTree(root, names, folders, of_all, None, odd, closed, frozenset(passed_over))


# ---- a tar ------------------------------------------------------------------------------


def _decompressed(path: Path, work: Path, progress: bool) -> Path:
    """The tar inside a gzip file; a finished earlier decompression is reused."""
    target = work / "source.tar"
    if target.exists():
        return target
    total = path.stat().st_size >> 20
    with (
        atomic_file(target) as plain,
        open_to_read(path) as file,
        gzip.open(file) as source,
        ProgressBar(f"decompressing {path.name}", total, "MiB", shown=progress) as bar,
    ):
        while piece := _read_piece(path, source):
            plain.write(piece)
            bar.advance((file.tell() >> 20) - bar.done)
    return target


def _read_piece(path: Path, source: gzip.GzipFile) -> bytes:
    try:
        return source.read(1 << 20)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: damaged or cut short: {error}") from error


def list_tar(path: Path, shown_as: Path, progress: bool) -> FileTree:
    """Lists a tar, without reading its members. Raises DataError as `open_tree`."""
    folders: set[str] = set()
    files: dict[str, tuple[int, int, str]] = {}  # offset, size, why it is odd
    targets: dict[str, str] = {}
    try:
        with (
            open_to_read(path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
            ProgressBar(f"listing {shown_as.name}", None, "files", shown=progress) as bar,
        ):
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # or a million of them stay in memory
                name = posixpath.normpath(member.name.lstrip("/"))
                bar.advance()
                if member.isdir():
                    folders.add(name)
                    continue
                targets[name] = _link_target(member, name)
                if member.isreg() and not member.issparse():
                    files[name] = (member.offset_data, member.size, _too_large(member.size))
                else:  # a link has what the file has that it points to
                    files[name] = files.get(targets[name], _NO_FILE)
            _check_end(path, tar.offset, shown_as)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shown_as}: not a tar, damaged or cut short: {error}") from error
    folders.update(parent for name in files for parent in _parents(name))
    hidden = {name: _passed_over(name) for name in (*files, *folders)}
    closed = {n: _TO_A_FOLDER for n in files if targets[n] in folders and not hidden[n]}
    kept = {n: file for n, file in files.items() if not hidden[n] and n not in closed}
    offsets, sizes = np.array([file[:2] for file in kept.values()], np.int64).reshape(-1, 2).T
    return FileTree(
        path,
        NameList(kept),
        {name for name in folders - {"."} if not hidden[name]},
        sizes=sizes,
        offsets=offsets,
        odd={name: why for name, (_, _, why) in kept.items() if why},
        closed=closed,
        passed_over=frozenset(filter(None, hidden.values())),
    )


def _link_target(member: tarfile.TarInfo, name: str) -> str:
    """The path that a link points to; "" for anything else."""
    if member.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    return posixpath.normpath(member.linkname) if member.islnk() else ""


def _passed_over(path: str) -> str:
    """The hidden or system part of a path, down to which it is looked at; "" if there is none."""
    parts = path.split("/")
    count = next((n for n, part in enumerate(parts, 1) if is_passed_over(part)), 0)
    return "" if path == "." else "/".join(parts[:count])


def _check_end(path: Path, offset: int, shown_as: Path) -> None:
    """tarfile takes a damaged header for the end of the archive; the true end is zeros."""
    with open_to_read(path) as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{shown_as}: damaged or cut short at byte {offset} of the tar, which has no end mark "
            "there; copy or download it again"
        )


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _too_large(size: int) -> str:
    return f"larger than {MOST_BYTES:,} bytes" if size > MOST_BYTES else ""
