"""Atomic writes, and reads of untrusted files.

Writing: temporary file, fsync, rename. A reader never sees half a file under its own name, whenever
the writer was killed; a killed writer leaves `.NAME.HEX.tmp`, which `remove_leftovers` removes. The
name of a temporary file is random and the file new, so that no link planted there is followed.

Reading: a folder of a stream, a run or an export may come from somebody else. `open_regular` is the
only way in: a pipe, a device or a folder is an error instead of an endless wait, and the `read_*`
functions refuse documents beyond a size limit.

An inventory lists files of one folder with sizes and digests, to verify a checkpoint or a replay
store. It is untrusted too: it names plain files only, and unlisted files or links are not read.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from kaizen_dist.common.errors import WriteError

DOCUMENT_LIMIT: Final = 64 << 20
"""Bytes of the largest JSON or YAML document that is read: a stream.json lists every shard."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]+\.tmp")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears as `path` when the block ends, and only if it ends well.

    A link at `path` is replaced, not followed. Raises WriteError naming `path` for every OSError
    of the block, and where a folder, a device or a pipe lies there.
    """
    refuse_special(path)
    temporary = _temporary(path)
    try:
        with writing(path):
            with os.fdopen(os.open(temporary, _NEW, 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        _unlink(temporary)


def atomic_write(path: Path, data: bytes) -> str:
    """Writes `path` whole and returns the sha256 of `data` in hex. Raises WriteError."""
    with atomic_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def atomic_link(path: Path, target: Path) -> None:
    """Makes `path` a link to `target`, in the place of a file or link there; it survives a power
    cut once a file is written beside it. Raises WriteError."""
    temporary = _temporary(path)
    try:
        with writing(path):
            temporary.symlink_to(target)
            temporary.replace(path)
    finally:
        _unlink(temporary)


def open_append(
    path: Path | str, flags: int = os.O_WRONLY | os.O_APPEND, *, folder: int | None = None
) -> int:
    """A descriptor of a file that is written in place (a log, a lock), made where it is missing.

    A link is not followed. `folder`: the descriptor of the folder that `path` is a name in.
    Raises OSError, also for anything else than a regular file.
    """
    # Opening a pipe would wait for its other end.
    wanted = flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return _regular(os.open(path, wanted, 0o666, dir_fd=folder))


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` to an open file, past every buffer. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def refuse_special(path: Path) -> None:
    """That a file may be put in the place of what lies at `path`.

    Raises:
        WriteError: if that is a folder, a device, a pipe, or a link to one.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing there, or a link to nothing, which is replaced
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe, not a file"
        raise WriteError(f"cannot write {path}: it is {what}; name another place")


def open_regular(path: Path | str, *, follow: bool = True, folder: int | None = None) -> int:
    """A descriptor to read a file; raises OSError, also for anything else than a regular file.

    Without `follow` also for a link. `folder`: the descriptor of the folder that `path` is in.
    """
    # Opening a pipe would wait for its other end.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    return _regular(os.open(path, flags | (0 if follow else os.O_NOFOLLOW), dir_fd=folder))


def open_to_read(path: Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, open for reading. Raises as `open_regular`."""
    return os.fdopen(open_regular(path, follow=follow), "rb")


def read_bytes(path: Path, limit: int = DOCUMENT_LIMIT, *, follow: bool = True) -> bytes:
    """A regular file's content. Raises OSError, also if it has more than `limit` bytes."""
    with open_to_read(path, follow=follow) as file:
        # As much memory as the file needs, not as the limit allows.
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, limit) + 1)
        if size < len(data) <= limit:  # it grows, or is one of /proc, which have no size
            data += file.read(limit + 1 - len(data))
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes")
    return data


def read_text(path: Path, limit: int = DOCUMENT_LIMIT, *, follow: bool = True) -> str:
    """As `read_bytes`, as UTF-8. Raises ValueError too."""
    return read_bytes(path, limit, follow=follow).decode("utf-8")


def read_json(path: Path, limit: int = DOCUMENT_LIMIT, *, follow: bool = True) -> Any:
    """As `read_bytes`, as JSON. Raises ValueError too."""
    return parse_json(read_bytes(path, limit, follow=follow))


def parse_json(data: bytes | str) -> Any:
    """Plain data from JSON. Raises ValueError, whatever is wrong with it."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # Such a string can be neither printed nor written.
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("holds half a surrogate pair, which is no character")
    return value


def remove(path: Path) -> None:
    """Removes a file, a link (not what it leads to) or a folder with all that is in it; nothing
    there is fine too. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where they are missing. Raises WriteError."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists; absolute."""
    return next(p for p in (path.resolve(), *path.resolve().parents) if p.is_dir())


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block whose OSErrors become WriteErrors of `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def file_sha256(path: Path, *, follow: bool = True) -> str:
    """The sha256 of a regular file, in hex; reads it a piece at a time. Raises OSError."""
    digest = hashlib.sha256()
    with open_to_read(path, follow=follow) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _regular(descriptor: int) -> int:
    """The descriptor, if it is that of a regular file; else it is closed. Raises OSError."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A new name beside `path`, which `is_leftover` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _unlink(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)
