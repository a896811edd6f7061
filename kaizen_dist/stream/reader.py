"""Reading files by position for days, by several threads, although they may change meanwhile.

A file that shrinks, vanishes or is replaced under a run gives a DataError with its name, never a
crash or other data. After every read the file's size and time of change are compared, and the name
is looked up again at most once a second; when either differs, the content must still have the
sha256 that stream.json states. (Inodes do not count: some network mounts change them.)

Nothing is mapped into memory: where a mapped file shrinks, the kernel ends the process (SIGBUS),
and where its disk does not answer, the whole interpreter stops.
"""

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from kaizen_dist.common.console import one_line
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
    """What stream.json says of a file; None = unknown."""

    bytes: int | None = None
    sha256: str | None = None
    most: int | None = None
    """The largest allowed size, where the size is unknown."""

    @property
    def limit(self) -> int | None:
        """The largest allowed size in bytes."""
        return self.most if self.bytes is None else self.bytes


UNKNOWN = Facts()


class Identity(NamedTuple):
    """Size and time of change: by them a file is recognised without reading it."""

    size: int
    modified_ns: int


def identity_of(status: os.stat_result) -> Identity:
    """The identity of a file with this status."""
    return Identity(status.st_size, status.st_mtime_ns)


def named(path: Path) -> str:
    """A file's path as a message tells it; of a link (`prepare --link`) with the file it leads to,
    for that is the one to mend."""
    try:
        return f"{path} (a link to {one_line(path.readlink())})"
    except OSError:
        return str(path)


class Handle:
    """An open descriptor, closed with its last reference, and the identity it was opened with."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.identity = identity_of(os.fstat(descriptor))
        self._looked_up = time.monotonic()

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the file's end. Raises OSError."""
        # A damaged index may ask for any length: no buffer is made for missing bytes.
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
        """Whether this is still the content under the file's name."""
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


class Storage(Protocol):
    """Where the files of one folder are opened, by name; safe for several threads."""

    path: Path
    """Their folder on this machine."""
    most_open: int
    """The number of files a reader may keep open at a time."""
    fetches: bool
    """Whether a file is fetched before it is opened."""

    def open(self, name: str, facts: Facts) -> Handle:
        """Raises OSError when it cannot be opened, DataError when it is not as `facts` say."""

    def is_ready(self, name: str) -> bool:
        """Whether opening a file needs no fetching and no checking."""

    def shown(self, name: str) -> str:
        """A file's path or URL, for messages."""


class Folder:
    """A folder whose files must stay what they were when first opened."""

    most_open = 64  # more would meet the usual limit of 1024 files in a large run
    fetches = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first: dict[str, Identity] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Folder"], tuple[Path]]:
        return Folder, (self.path,)

    def is_ready(self, name: str) -> bool:  # noqa: ARG002
        return True

    def shown(self, name: str) -> str:
        # Where a link leads is not looked up: the watchdog asks while the disk does not answer.
        return str(self.path / name)

    def open(self, name: str, facts: Facts) -> Handle:
        path = self.path / name
        try:
            handle = Handle(path, open_regular(path))
        except OSError as error:
            if path.is_symlink():
                raise DataError(f"{named(path)}: {error.strerror}; {CURE}") from error
            raise
        size = handle.identity.size
        if facts.bytes not in (None, size):
            said = f"but stream.json says {facts.bytes:,}"
            raise DataError(f"{named(path)}: {size:,} bytes, {said}; {CURE}")
        if facts.most is not None and size > facts.most:
            raise DataError(f"{named(path)}: larger than stream.json lets it be; {CURE}")
        with self._lock:
            first = self._first.setdefault(name, handle.identity)
        if handle.identity != first:
            self._check_replaced(handle, first, facts)
            with self._lock:
                self._first[name] = handle.identity
        return handle

    def _check_replaced(self, handle: Handle, first: Identity, facts: Facts) -> None:
        """A replaced file is accepted if it has the same content."""
        if facts.sha256 is None or handle.sha256() != facts.sha256:
            sizes = f" ({first.size:,} bytes before, {handle.identity.size:,} now)"
            raise DataError(
                f"{named(handle.path)}: has changed since this program began to read it"
                f"{sizes if handle.identity.size != first.size else ''}; {CURE}"
            )


class StoredFile:
    """A file of a storage, opened when it is first read, and again when it was replaced."""

    def __init__(self, storage: Storage, name: str, facts: Facts = UNKNOWN) -> None:
        self._storage, self._name, self._facts = storage, name, facts
        self._handle: Handle | None = None

    def __str__(self) -> str:
        return self._storage.shown(self._name)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the file's end.

        Raises:
            OSError: when it cannot be read.
            DataError: when it is not, or no longer, as stream.json says.
        """
        return self.read_all([(offset, length)])[0]

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several ranges, each (offset, length). Raises as `read`."""
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
