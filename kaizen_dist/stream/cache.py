"""Files of a remote stream on this node's own disk, fetched when first needed, up to a limit.

    CACHE_DIR/FINGERPRINT/task-00/train-000000.tar              a complete file of that stream
    CACHE_DIR/FINGERPRINT/task-00/.train-000000.tar.HEX.part    one that is being fetched
    CACHE_DIR/.lock, .lock-HH                                   held while room is made, or fetching

All ranks and runs of a node share the folder without a coordinator. Who fetches a file holds its
lock (one of 256) while others wait for it; the file appears under its name by a rename. An open
file is held under a shared lock, so that eviction (least recently opened first) skips it. The
kernel drops the locks of a process that dies.

The content of the cache is not trusted. A process checks the sha256 of a file before it first
reads it, and fetches it again where it differs. In CACHE_DIR no link is followed, neither to read
nor to write nor to delete: every folder is opened from its parent's descriptor, so that a folder
swapped for a link meanwhile does not matter. A link in a file's place is replaced, one in a
folder's place is an error, and what lies behind it is never evicted.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.common.files import open_append, open_regular
from kaizen_dist.common.io_watchdog import waiting_for
from kaizen_dist.stream.reader import Facts, Handle, Identity
from kaizen_dist.stream.remote import Remote

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TASK = re.compile(r"[\w-]+")
_FILE = re.compile(r"\.?(train|val)(-[0-9]{6,}\.tar|\.index\.npy)(\.([0-9a-f]{16}\.)?part)?")
"""Names of the cache's own files; others in its folder are never touched."""
_NO_FILE = {errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR}
"""What `files` raises for a link, a device, a pipe, a socket or a folder."""
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def default_cache_dir() -> Path:
    """`kaizen_dist` in the user's cache folder, as in the XDG base directory specification."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the specification a relative path is to be ignored.
    return (named if named.is_absolute() else Path.home() / ".cache") / "kaizen_dist"


@contextmanager
def _open_folder(root: Path, *names: str, make: bool = False) -> Iterator[int]:
    """The descriptor of ROOT/NAMES, following no link below `root`; with `make`, missing folders
    are made. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path, descriptor = root, os.open(root, flags)
    try:
        for name in names:
            path = path / name
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
            try:
                inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except NotADirectoryError as error:
                raise OSError(error.errno, f"{path} is a link or a file; remove it") from error
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _unlink(inside: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=inside)


class _CachedFile(NamedTuple):
    fingerprint: str
    folder: str
    name: str
    bytes: int
    opened_ns: int
    """The time of access, which `CachedFolder.open` sets whatever the mount's options are."""


class Cache:
    """A node's cache folder with its limit in bytes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._warned_full = False

    @contextmanager
    def locked(self, name: str, waits_for: str) -> Iterator[None]:
        """Keeps out all other threads and processes that ask for this lock. Raises OSError."""
        path = self.root / name
        try:
            file = os.fdopen(open_append(path), "ab")
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            raise OSError(error.errno, f"{path} is a link or no file; remove it") from error
        with file:
            with waiting_for(waits_for):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make_room(self, file: BinaryIO, size: int) -> None:
        """Gives a new, locked file in the cache its size at once, so that all who make room count
        it, and evicts the least recently opened files until the total is within the limit.

        Raises UsageError where the limit is too low for the one file.
        """
        if size > self.limit:
            raise UsageError(
                f"stream.cache_gb={self.limit / 1e9:g} is too little for a file of the stream, of "
                f"{size / 1e9:.3g} GB; raise it"
            )
        with self.locked(".lock", f"{self.root / '.lock'} (held by another process of this node)"):
            file.truncate(size)
            files = self._files()
            over = sum(cached.bytes for cached in files) - self.limit
            for cached in sorted(files, key=lambda cached: cached.opened_ns):
                if over > 0 and cached.bytes:  # an empty one is just being made
                    over -= self._evict(cached)
        if over > 0 and not self._warned_full:
            self._warned_full = True
            say(
                f"{self.root}: {over / 1e9:.3g} GB over stream.cache_gb={self.limit / 1e9:g}, all "
                "of it in use; raise it"
            )

    def _files(self) -> list[_CachedFile]:
        found = []
        for fingerprint in filter(_FINGERPRINT.fullmatch, self._entries()):
            for folder in filter(_TASK.fullmatch, self._entries(fingerprint)):
                for name, status in self._entries(fingerprint, folder).items():
                    if _FILE.fullmatch(name) and stat.S_ISREG(status.st_mode):
                        facts = (status.st_size, status.st_atime_ns)
                        found.append(_CachedFile(fingerprint, folder, name, *facts))
        return found

    def _entries(self, *folders: str) -> dict[str, os.stat_result]:
        """What lies in a folder; nothing where a link is in its place."""
        found = {}
        with suppress(OSError), _open_folder(self.root, *folders) as inside:
            for entry in os.scandir(inside):
                with suppress(FileNotFoundError):  # evicted meanwhile
                    found[entry.name] = entry.stat(follow_symlinks=False)
        return found

    def _evict(self, cached: _CachedFile) -> int:
        """Removes a file that nobody has open; the number of bytes freed."""
        place = (self.root, cached.fingerprint, cached.folder)
        with suppress(OSError), _open_folder(*place) as inside:
            descriptor = open_regular(cached.name, follow=False, folder=inside)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _unlink(inside, cached.name)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        return 0


class CachedFolder:
    """A folder of a remote stream, read through the cache; a `reader.Storage` whose `path` is its
    folder in the cache."""

    most_open = 8  # an open file is not evicted, and opening one again is cheap
    fetches = True

    def __init__(self, cache: Cache, remote: Remote, fingerprint: str, folder: str) -> None:
        self.cache, self.remote, self.fingerprint, self.folder = cache, remote, fingerprint, folder
        self.path = cache.root / fingerprint / folder
        self._verified: dict[str, Identity] = {}
        """By file, its identity when its sha256 was last found right."""
        self._fetched: set[str] = set()
        self._warned_small = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["CachedFolder"], tuple[Cache, Remote, str, str]]:
        return CachedFolder, (self.cache, self.remote, self.fingerprint, self.folder)

    def shown(self, name: str) -> str:
        return self.remote.shown(f"{self.folder}/{name}")

    def is_ready(self, name: str) -> bool:
        return name in self._verified and os.path.lexists(self.path / name)

    def open(self, name: str, facts: Facts) -> Handle:
        """A handle on a complete copy of the file, fetched if there is none.

        Raises:
            DataError: naming the URL that cannot be fetched.
            UsageError: if the cache cannot hold so large a file.
            WriteError: naming the cache that cannot be written.
        """
        try:
            self.cache.root.mkdir(parents=True, exist_ok=True)
            place = (self.cache.root, self.fingerprint, self.folder)
            with _open_folder(*place, make=True) as inside:
                return self._present(inside, name, facts) or self._fetch(inside, name, facts)
        except OSError as error:
            raise WriteError(
                f"the cache {self.cache.root} cannot be used: {error.strerror or error}; free "
                "space, or name a folder on another disk of this machine with stream.cache_dir"
            ) from error

    def _present(self, inside: int, name: str, facts: Facts) -> Handle | None:
        """A handle on the cached file, under a shared lock; None if it is not there or damaged."""
        path = self.path / name
        try:
            handle = Handle(path, open_regular(name, follow=False, folder=inside))
        except OSError as error:
            if error.errno in (errno.ENOENT, *_NO_FILE):
                return None  # no file is replaced by the one that is fetched
            raise
        fcntl.flock(handle.descriptor, fcntl.LOCK_SH)
        status = os.fstat(handle.descriptor)
        if status.st_nlink == 0:  # evicted between opening and locking
            return None
        if self._verified.get(name) != handle.identity:
            if handle.sha256() != facts.sha256:
                say(f"{path}: the cached copy is damaged; fetching it again")
                self._fetched.discard(name)
                _unlink(inside, name)
                return None
            self._verified[name] = handle.identity
        os.utime(handle.descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return handle

    def _fetch(self, inside: int, name: str, facts: Facts) -> Handle:
        """Brings a file into the cache, unless another process or thread does just now."""
        stripe = hashlib.sha256(f"{self.path}/{name}".encode()).hexdigest()[:2]
        shown = f"{self.shown(name)} (being fetched by another process of this node)"
        part = f".{name}.{secrets.token_hex(8)}.part"
        with self.cache.locked(f".lock-{stripe}", shown):
            if handle := self._present(inside, name, facts):
                return handle
            with os.fdopen(os.open(part, _NEW, 0o666, dir_fd=inside), "r+b") as file:
                try:
                    # Evicted neither now nor while it is read.
                    fcntl.flock(file, fcntl.LOCK_SH)
                    self.cache.make_room(file, facts.limit or 0)
                    self.remote.fetch(f"{self.folder}/{name}", file, facts)
                    os.fsync(file.fileno())
                    os.rename(part, name, src_dir_fd=inside, dst_dir_fd=inside)
                except BaseException:
                    _unlink(inside, part)
                    raise
                handle = Handle(self.path / name, os.dup(file.fileno()))
        self._verified[name] = handle.identity
        self._note_fetched(name)
        return handle

    def _note_fetched(self, name: str) -> None:
        """Warns, once, of a cache that is too small to avoid fetching."""
        with self._lock:
            again = name in self._fetched and not self._warned_small
            self._fetched.add(name)
            self._warned_small |= again
        if again:
            say(
                f"{self.shown(name)} is fetched for the second time: what this node reads does not "
                f"fit into stream.cache_gb={self.cache.limit / 1e9:g}; raise it"
            )
