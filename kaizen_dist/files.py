"""Files that are either whole or not there: write beside, flush to disk, rename.

A reader never sees half a file under its own name, whenever the writer was killed; what a
killed writer leaves behind is named `.NAME.PID.tmp` and is removed by `remove_leftovers`.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kaizen_dist.errors import WriteError

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears as `path` when the block ends, and only if it ends well.

    Raises WriteError naming `path` for every OSError of the block.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _unlink(temporary)


def atomic_write(path: Path, data: bytes) -> str:
    """Writes `path` whole and returns the sha256 of `data` in hex. Raises WriteError."""
    with atomic_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where they are missing. Raises WriteError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def is_leftover(path: Path) -> bool:
    """Whether this is what a killed writer left (or what one is writing just now)."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(*folders: Path) -> None:
    """Removes what killed writers left in these folders. Raises WriteError."""
    for folder in folders:
        for leftover in filter(is_leftover, folder.glob(".*")):
            _unlink(leftover)


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The WriteError that tells the user what could not be written, why, and what to do."""
    return WriteError(
        f"cannot write {path}: {error.strerror or error}; "
        "free space or correct the permissions and run the same command again"
    )


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hex; reads it a piece at a time. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
