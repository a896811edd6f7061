"""What a source's place holds: a folder, a tar or a compressed tar, as a `Tree`.

A compressed tar is decompressed once into a work folder, since nothing in it can be found
without reading all before it. Odd entries (a pipe, a link that leads nowhere) are noted, not met
as errors: whether they matter, sources.py knows.
"""

import gzip
import hashlib
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file, open_to_read
from kaizen_dist.stream.folders import Kind, is_passed_over, walk
from kaizen_dist.stream.images import MOST_BYTES
from kaizen_dist.stream.trees import Tree, printable

_GZIP_MAGIC = b"\x1f\x8b"
_TO_A_FOLDER = "is a link to a folder; write the tar again with `tar --dereference`"


def open_tree(path: Path, work: Path, progress: bool = True) -> Tree:
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
        compressed = is_compressed(path)
    except OSError as error:
        name = printable(str(error.filename or path))
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    return _list_tar(_decompressed(path, work, progress) if compressed else path, path, progress)


def is_compressed(path: Path) -> bool:
    """Whether this is a gzip file. Raises OSError."""
    with open_to_read(path) as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def digest_of_gzip(path: Path) -> str:
    """By what a changed gzip file is noticed without decompressing it. Raises OSError."""
    with open_to_read(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))  # the checksum and size of what is in it
        return hashlib.sha256(b"%d " % size + file.read(8)).hexdigest()


# ---- a folder ---------------------------------------------------------------------------


def _list_folder(root: Path, progress: bool) -> Tree:
    names, sizes, folders = [], [], set()
    odd, closed, passed_over = {}, {}, set()
    with ProgressBar(f"listing {printable(str(root))}", None, "files", shown=progress) as meter:
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
                meter.advance()
                if why := why or _too_large(size):
                    odd[name] = why
    array = np.array(sizes, np.int64)
    return Tree(root, names, folders, array, None, odd, closed, frozenset(passed_over))


# ---- a tar ------------------------------------------------------------------------------


def _decompressed(path: Path, work: Path, progress: bool) -> Path:
    """The tar inside a gzip file; an earlier, finished decompression is taken as it is."""
    target = work / "source.tar"
    if target.exists():
        return target
    total = path.stat().st_size >> 20
    with (
        atomic_file(target) as plain,
        open_to_read(path) as file,
        gzip.open(file) as source,
        ProgressBar(f"decompressing {path.name}", total, "MiB", shown=progress) as meter,
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
    odd: dict[str, str] = {}
    links: dict[str, str] = {}
    try:
        with (
            open_to_read(path) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
            ProgressBar(f"listing {shown_as.name}", None, "files", shown=progress) as meter,
        ):
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # or a million of them stay in memory
                name = posixpath.normpath(member.name.lstrip("/"))
                if member.isdir():
                    folders.add(name)
                else:
                    target = links[name] = _target(member, name)
                    place[name], odd[name] = _place(member, target, place, odd)
                meter.advance()
            _check_end(path, tar.offset, shown_as)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shown_as}: not a tar, damaged or cut short: {error}") from error
    for name in place:
        folders.update(_parents(name))
    hidden = {name: _passed_over(name) for name in (*place, *folders)}
    closed = {name: _TO_A_FOLDER for name in place if links[name] in folders and not hidden[name]}
    names = [name for name in place if not hidden[name] and name not in closed]
    numbers = np.array([place[name] for name in names], np.int64).reshape(-1, 2)
    return Tree(
        path,
        names,
        {name for name in folders - {"."} if not hidden[name]},
        sizes=numbers[:, 1],
        offsets=numbers[:, 0],
        odd={name: odd[name] for name in names if odd[name]},
        closed=closed,
        passed_over=frozenset(filter(None, hidden.values())),
    )


def _place(
    member: tarfile.TarInfo,
    target: str,
    before: Mapping[str, tuple[int, int]],
    odd: Mapping[str, str],
) -> tuple[tuple[int, int], str]:
    """Offset and size of a member's bytes, and why it is `Tree.odd`, if it is; a link has what
    the file before it has that it points to."""
    if member.isreg() and not member.issparse():
        return (member.offset_data, member.size), _too_large(member.size)
    if target in before:
        return before[target], odd[target]
    return (0, 0), "neither a plain file, nor a link to a file before it"


def _target(member: tarfile.TarInfo, name: str) -> str:
    """The path that a link points to; empty for all else."""
    if member.issym():
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    return posixpath.normpath(member.linkname) if member.islnk() else ""


def _passed_over(name: str) -> str:
    """The part of a path that is not looked at, with all below it; empty if there is none."""
    parts = name.split("/")
    for count, part in enumerate(parts, 1):
        if is_passed_over(part) and name != ".":
            return "/".join(parts[:count])
    return ""


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


def _parents(name: str) -> Iterable[str]:
    while name := posixpath.dirname(name):
        yield name


def _too_large(size: int) -> str:
    return f"larger than {MOST_BYTES:,} bytes" if size > MOST_BYTES else ""
