"""One process at a time: a lock on a file, which ends with its process however that ends."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import cannot_write, make_folder, open_append

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}
"""What a file system answers that knows no locks: there, nothing keeps a second process out."""

_LOOK_EVERY = 0.2
"""Seconds."""


@contextmanager
def alone(
    path: Path, busy: str, patience: float = 0.0, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Keep every other process that asks for `path` out, for as long as the block lasts.

    The file is made if it is not there, with its folder, and stays. Where another process holds
    it, that one is given `patience` seconds to end; `waiting` is called once before that.

    Raises:
        UsageError: saying `busy`, if the other one has not ended.
        WriteError: if the file cannot be made.
    """
    make_folder(path.parent)
    try:
        # Not emptied and no link followed: what lies there may be somebody else's.
        file = os.fdopen(open_append(path), "ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        if not _lock(path, file) and waiting is not None and patience > 0:
            waiting()
        until = time.monotonic() + patience
        while not _lock(path, file):
            if time.monotonic() >= until:
                raise UsageError(busy)
            time.sleep(_LOOK_EVERY)
        yield


def _lock(path: Path, file: BinaryIO) -> bool:
    """Whether the file is ours now (asking again for what is ours does no harm)."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(path, error) from error
    return True
