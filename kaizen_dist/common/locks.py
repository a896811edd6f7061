"""One process at a time: a lock on a file, released when its process ends, however it ends."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import cannot_write, make_folder, open_append, writing

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
"""Errors of file systems without locks: there, nothing keeps a second process out."""
_POLL_SECONDS = 0.2


@contextmanager
def alone(
    path: Path,
    busy: str,
    patience: float = 0.0,
    waiting: Callable[[], None] | None = None,
    shared: bool = False,
) -> Iterator[None]:
    """Keep every other process that locks `path` out while the block runs; with `shared` only those
    that do not share it.

    The file and its folder are made if missing, and stay. A process that holds the lock has
    `patience` seconds to end; `waiting` is called once before that.

    Raises:
        UsageError: with the message `busy`, if it has not ended.
        WriteError: if the file cannot be made.
    """
    with _opened(path) as file:
        until = time.monotonic() + patience
        while not _lock(path, file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() >= until:
                raise UsageError(busy)
            if waiting is not None:
                waiting()
                waiting = None
            time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process has `path` to itself while the block runs; it does not wait for it.

    Raises:
        WriteError: if the file cannot be made.
    """
    with _opened(path) as file:
        yield _lock(path, file, fcntl.LOCK_EX)


def _opened(path: Path) -> BinaryIO:
    make_folder(path.parent)
    with writing(path):
        # Not emptied and no link followed: what lies there may be somebody else's.
        return os.fdopen(open_append(path), "ab")


def _lock(path: Path, file: BinaryIO, kind: int) -> bool:
    """Try to lock the file; locking it again does no harm."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(path, error) from error
    return True
