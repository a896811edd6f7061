"""Files that are read for days: by position, by several threads, and each staying what it was.

In comes the name of a file with what stream.json says of it, out come its bytes, or a DataError
that names it. A file that shrinks, vanishes or is replaced under a run is met by neither a crash
nor other data: every read is followed by a look at the file's size and time of change, the name is
looked up again now and then, and when either differs, the content must still have the sha256
it is said to have. (Inodes do not count: on some network mounts they change by themselves.)
Nothing is mapped into memory: where a mapped file
shrinks, the kernel ends the process without a word (SIGBUS), and where its disk does not
answer, the whole interpreter stands still.

`Folder` is such files in a folder; `cache.CachedFolder` has the same face for files that
first have to be brought from elsewhere.
"""

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import open_regular
from kaizen_dist.common.io_watchdog import waiting_for

RECHECK_SECONDS = 1.0
"""A file's name is looked up again at most this often."""

CURE = (
    "`kaizen-dist verify` on the stream lists all that is damaged, then restore the file or "
    "prepare the stream again"
)
_TRIES = 3
_PIECE = 1 << 20


class Facts(NamedTuple):
    """What is known of a file beforehand; None = not known."""

    bytes: int | None = None
    sha256: str | None = None
    most: int | None = None
    """Bytes that it has at most, where their number is not known."""

    @property
    def limit(self) -> int | None:
        """Bytes after which it cannot be what it should."""
        return self.most if self.bytes is None else self.bytes


UNKNOWN = Facts()


class Identity(NamedTuple):
    """By which a file is known again without reading it."""

    size: int
    modified_ns: int


def identity_of(status: os.stat_result) -> Identity:
    """The identity that a stat tells."""
    return Identity(status.st_size, status.st_mtime_ns)


class Handle:
    """An open descriptor that closes itself once nobody holds it, with the identity it had."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.identity = identity_of(os.fstat(descriptor))
        self._looked_up = time.monotonic()

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the file's end. Raises OSError."""
        # An index gone wrong may ask for anything: no buffer is made for what is not there.
        length = max(0, min(length, self.identity.size - offset))
        data = b""
        while len(data) < length:
            more = os.pread(self.descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def sha256(self) -> str:
        """Of the whole content, in hex. Raises OSError."""
        digest, offset = hashlib.sha256(), 0
        while piece := self.read(offset, _PIECE):
            digest.update(piece)
            offset += len(piece)
        return digest.hexdigest()

    def unchanged(self) -> bool:
        """Whether what was read so far is still what the file's name stands for."""
        if identity_of(os.fstat(self.descriptor)) != self.identity:
            return False
        if time.monotonic() - self._looked_up < RECHECK_SECONDS:
            return True
        self._looked_up = time.monotonic()
        try:
            return identity_of(self.path.stat()) == self.identity
        except FileNotFoundError:
            return False

    def __del__(self) -> None:
        # Without an identity the descriptor is its opener's to close.
        if "identity" in self.__dict__:
            os.close(self.descriptor)


def open_handle(path: Path) -> Handle:
    """Opens a regular file for reading. Raises OSError, also for anything else than a file."""
    descriptor = open_regular(path)
    try:
        return Handle(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


class Storage(Protocol):
    """Where the files of one folder are opened, by name; safe for several threads."""

    path: Path
    """Where they lie on this machine."""
    most_open: int
    """How many a reader may keep open at a time."""
    fetches: bool
    """Whether a file is fetched before it is opened."""

    def open(self, name: str, facts: Facts) -> Handle:
        """Raises OSError when it cannot be opened, DataError when it is not what it should be."""
        ...

    def is_ready(self, name: str) -> bool:
        """Whether opening a file takes no fetching and no checking."""
        ...

    def shown(self, name: str) -> str:
        """The path or URL by which a person knows a file."""
        ...


class Folder:
    """A folder whose files are to stay what they were when first opened."""

    most_open = 64  # more would meet the usual limit of 1024 files in a large run
    fetches = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first: dict[str, Identity] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Folder"], tuple[Path]]:
        return Folder, (self.path,)

    def is_ready(self, name: str) -> bool:  # noqa: ARG002 - what is not there is no one's to bring
        return True

    def shown(self, name: str) -> str:
        return str(self.path / name)

    def open(self, name: str, facts: Facts) -> Handle:
        handle = open_handle(self.path / name)
        size = handle.identity.size
        if facts.bytes is not None and size != facts.bytes:
            raise DataError(
                f"{handle.path}: {size:,} bytes, but stream.json says {facts.bytes:,}; {CURE}"
            )
        if facts.most is not None and size > facts.most:
            raise DataError(f"{handle.path}: larger than stream.json lets it be; {CURE}")
        with self._lock:
            first = self._first.setdefault(name, handle.identity)
        if handle.identity != first:
            self._check_replaced(handle, first, facts)
            with self._lock:
                self._first[name] = handle.identity
        return handle

    def _check_replaced(self, handle: Handle, first: Identity, facts: Facts) -> None:
        """A copy put in a file's place will do, if it is one."""
        if facts.sha256 is None or handle.sha256() != facts.sha256:
            sizes = f" ({first.size:,} bytes before, {handle.identity.size:,} now)"
            raise DataError(
                f"{handle.path}: has changed since this program began to read it"
                f"{sizes if handle.identity.size != first.size else ''}; {CURE}"
            )


class StoredFile:
    """A file of a storage, opened when it is first read, and again when it was replaced."""

    def __init__(self, storage: Storage, name: str, facts: Facts = UNKNOWN) -> None:
        self._storage, self._name, self._facts = storage, name, facts
        self._handle: Handle | None = None

    def __str__(self) -> str:
        return self._storage.shown(self._name)

    def size(self) -> int:
        """Bytes. Raises as `read`."""
        with waiting_for(self):
            return self._opened().identity.size

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the file's end.

        Raises:
            OSError: when it cannot be read.
            DataError: when it is not, or no longer, what it should be.
        """
        return self.read_all([(offset, length)])[0]

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """What lies at several places, each (offset, length). Raises as `read`."""
        with waiting_for(self):
            for _ in range(_TRIES):
                handle = self._opened()
                data = [handle.read(offset, length) for offset, length in places]
                if handle.unchanged():
                    return data
                if self._handle is handle:  # and not one that another thread has opened since
                    self._handle = None
        raise DataError(f"{self}: is being written while it is read; {CURE}")

    def _opened(self) -> Handle:
        # Two threads that come first both open it; one handle is closed again.
        handle = self._handle
        if handle is None:
            handle = self._handle = self._storage.open(self._name, self._facts)
        return handle
