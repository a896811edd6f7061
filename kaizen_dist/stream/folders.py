"""What lies below a folder: one walk for `prepare` and `predict`, with one rule for odd entries.

Links are followed, to files and to folders. Not looked at are hidden entries and the folders
that systems lay beside people's files (`is_passed_over`). An entry that is neither a file nor a
folder, or leads nowhere, or back to where it lies, does not end the walk: it is told of.
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
"""To one folder, by different links: folders that link to each other have endless paths."""

Identity: TypeAlias = tuple[int, int]
"""Device and number of a folder, by which the same one is known again."""


class Kind(Enum):
    """What an entry is."""

    FILE = auto()
    FOLDER = auto()
    PASSED_OVER = auto()
    """Hidden or a system's: not looked at."""
    ODD = auto()
    """Nothing that could be read; `why` says what it is."""
    CLOSED = auto()
    """A folder that cannot be opened; `why` says why."""


class Entry(NamedTuple):
    """What lies below a folder; `name` is its path there, with forward slashes."""

    name: str
    kind: Kind
    size: int = 0
    """Bytes of a file."""
    why: str = ""


def is_passed_over(name: str) -> bool:
    """Whether an entry of this name (no path) is not looked at."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def walk(root: Path) -> Iterator[Entry]:
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
            yield Entry(below, Kind.CLOSED, why=f"cannot be opened: {error.strerror}")
            continue
        if below:
            yield Entry(below, Kind.FOLDER)
        with entries:
            for entry in entries:
                name = posixpath.join(below, entry.name)
                found, identity = _look_at(entry, name)
                if found.kind is Kind.FOLDER:
                    visits[identity] += 1
                    if identity in above:
                        yield Entry(name, Kind.ODD, why="a link back to a folder that it lies in")
                    elif visits[identity] > MOST_VISITS:
                        yield Entry(name, Kind.ODD, why="one of many links to the same folder")
                    else:
                        waiting.append((name, (*above, identity)))
                else:
                    yield found


def _look_at(entry: os.DirEntry[str], name: str) -> tuple[Entry, Identity]:
    """What an entry is, and the identity of a folder."""
    if is_passed_over(entry.name):
        return Entry(name, Kind.PASSED_OVER), (0, 0)
    try:
        info = entry.stat()
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ELOOP) and entry.is_symlink()
        why = "a link that leads nowhere" if nowhere else f"cannot be read: {error.strerror}"
        return Entry(name, Kind.ODD, why=why), (0, 0)
    if stat.S_ISDIR(info.st_mode):
        return Entry(name, Kind.FOLDER), _identity(info)
    if stat.S_ISREG(info.st_mode):
        return Entry(name, Kind.FILE, info.st_size), (0, 0)
    return Entry(name, Kind.ODD, why="a device or a pipe, not a file"), (0, 0)


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino
