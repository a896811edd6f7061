"""Folders to which no link leads: each opened from its parent's descriptor, none by its path.

In come a folder that is trusted and names below it, out comes a descriptor; a name in it then
means what lies there, whoever swaps a folder above it for a link meanwhile. (Not with pathlib,
which knows paths only.)
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kaizen_dist.common.console import say

NO_FILE = {errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR}
"""What `files` raises for a link, a device, a pipe, a socket or a folder."""


@contextmanager
def open_folder(root: Path, *names: str, make: bool = False) -> Iterator[int]:
    """The descriptor of ROOT/NAMES, to which no link below `root` leads; with `make` they are made
    where they are missing. Raises OSError."""
    path, descriptor = root, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            path = path / name
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                inner = os.open(name, flags, dir_fd=descriptor)
            except NotADirectoryError as error:
                raise OSError(error.errno, f"{path} is a link or a file; remove it") from error
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def exists(inside: int, name: str) -> bool:
    """Whether anything lies there, be it a link to nothing."""
    try:
        os.stat(name, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def unlink(inside: int, name: str) -> None:
    """Removes a file or a link, if there is one. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=inside)


def remove_no_file(error: OSError, inside: int, path: Path) -> None:
    """Removes what could not be opened since it is no file (of a link: the link itself). Raises
    the error again if that is not the reason, and OSError for a folder."""
    if error.errno not in NO_FILE:
        raise error
    say(f"{path}: a link or no file, which is not used; removing it")
    try:
        unlink(inside, path.name)
    except OSError as refused:
        raise OSError(refused.errno, f"{path} is a folder; remove it") from refused
