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
    path: Path, busy: str, patience: float = 0.0, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Keep every other process that locks `path` out while the block runs.

    The file and its folder are made if missing, and stay. A process that holds the lock has
    `patience` seconds to end; `waiting` is called once before that.

    Raises:
        UsageError: with the message `busy`, if it has not ended.
        WriteError: if the file cannot be made.
    """
    make_folder(path.parent)
    with writing(path):
        # Not emptied and no link followed: what lies there may be somebody else's.
        file = os.fdopen(open_append(path), "ab")
    with file:
        until = time.monotonic() + patience
        while not _lock(path, file):
            if time.monotonic() >= until:
                raise UsageError(busy)
            if waiting is not None:
                waiting()
                waiting = None
            time.sleep(_POLL_SECONDS)
        yield


def _lock(path: Path, file: BinaryIO) -> bool:
    """Try to lock the file; locking it again does no harm."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(path, error) from error
    return True
