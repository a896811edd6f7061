"""Walking a folder, by the same rules for `prepare` and `predict`.

Links are followed, to files and to folders. Hidden entries and system folders are passed over
(`is_passed_over`). An entry that is neither a file nor a folder, a broken link and a link to a
folder above it do not end the walk: they are reported as entries of their own kinds.
"""

import errno
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

SYSTEM_FOLDERS: Final = frozenset(
    {"lost+found", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
)
MOST_VISITS: Final = 50
"""Of one folder, by different links: folders that link to each other have endless paths."""

Identity: TypeAlias = tuple[int, int]
"""Device and inode of a folder."""


class Kind(Enum):
    """The kind of an entry."""

    FILE = auto()
    FOLDER = auto()
    PASSED_OVER = auto()
    """A hidden entry or a system folder."""
    ODD = auto()
    """Unreadable; `why` says what it is."""
    CLOSED = auto()
    """A folder that cannot be opened; `why` says why."""


class FolderEntry(NamedTuple):
    """An entry below a folder; `name` is its path there, with forward slashes."""

    name: str
    kind: Kind
    size: int = 0
    """Bytes of a file."""
    why: str = ""


def is_passed_over(name: str) -> bool:
    """Whether an entry of this name (not path) is ignored, with all below it."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def walk(root: Path) -> Iterator[FolderEntry]:
    """All entries below a folder, in no special order.

    Raises OSError if `root` itself cannot be opened.
    """
    visits: Counter[Identity] = Counter()
    waiting: list[tuple[str, tuple[Identity, ...]]] = [("", (_identity(root.stat()),))]
    while waiting:
        below, above = waiting.pop()
        try:
            entries = os.scandir(root / below)
        except OSError as error:
            if not below:
                raise
            yield FolderEntry(below, Kind.CLOSED, why=f"cannot be opened: {error.strerror}")
            continue
        if below:
            yield FolderEntry(below, Kind.FOLDER)
        with entries:
            for entry in entries:
                name = posixpath.join(below, entry.name)
                found, identity = _look_at(entry, name)
                if found.kind is Kind.FOLDER:
                    visits[identity] += 1
                    if identity in above:
                        yield FolderEntry(
                            name, Kind.ODD, why="a link back to a folder that it lies in"
                        )
                    elif visits[identity] > MOST_VISITS:
                        yield FolderEntry(
                            name, Kind.ODD, why="one of many links to the same folder"
                        )
                    else:
                        waiting.append((name, (*above, identity)))
                else:
                    yield found


def _look_at(entry: os.DirEntry[str], name: str) -> tuple[FolderEntry, Identity]:
    """An entry, and its identity if it is a folder."""
    if is_passed_over(entry.name):
        return FolderEntry(name, Kind.PASSED_OVER), (0, 0)
    try:
        info = entry.stat()
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ELOOP) and entry.is_symlink()
        why = "a link that leads nowhere" if nowhere else f"cannot be read: {error.strerror}"
        return FolderEntry(name, Kind.ODD, why=why), (0, 0)
    if stat.S_ISDIR(info.st_mode):
        return FolderEntry(name, Kind.FOLDER), _identity(info)
    if stat.S_ISREG(info.st_mode):
        return FolderEntry(name, Kind.FILE, info.st_size), (0, 0)
    return FolderEntry(name, Kind.ODD, why="a device or a pipe, not a file"), (0, 0)


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino
