"""Files of a remote stream on this node's own disk, fetched when first needed, up to a limit.

    CACHE_DIR/FINGERPRINT/task-00/train-000000.tar            a file of that stream, whole
    CACHE_DIR/FINGERPRINT/task-00/.train-000000.tar.part      one on its way, locked by who fetches
    CACHE_DIR/.lock                                           held while room is made

In comes a file's name with its sha256, out comes an open handle on a copy that has it. All
ranks and runs of a node share the folder and need no one to keep order: a file is fetched by
whoever first locks its `.part` while the others wait for that lock, appears under its name by a
rename, and is held open under a shared lock, so that whoever makes room for another file
(least recently opened first) passes over those in use. The kernel drops the locks of a
process that dies.

What lies in the cache is not trusted. A process checks the sha256 of a file before it first
reads it, and fetches it again where it differs. From CACHE_DIR on no link is followed, neither
reading nor writing nor deleting: every folder is opened from its parent's descriptor. A link in
a file's place is removed, one in a folder's place is an error, and a folder's content behind one
is nobody's to evict.
"""

import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.common.files import open_append, open_regular
from kaizen_dist.common.io_watchdog import waiting_for
from kaizen_dist.stream.nofollow import NO_FILE, exists, open_folder, remove_no_file, unlink
from kaizen_dist.stream.reader import Facts, Handle, Identity
from kaizen_dist.stream.remote import Remote

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TASK = re.compile(r"[\w-]+")
_FILE = re.compile(r"\.?(train|val)(-[0-9]{6,}\.tar|\.index\.npy)(\.part)?")
"""What is the cache's own has such names: whatever else lies in its folder is never touched."""
_POLL_SECONDS = 0.05


def default_cache_dir() -> Path:
    """`kaizen_dist` in the user's cache folder, as the XDG base directory specification has it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the specification a relative path is to be ignored.
    return (named if named.is_absolute() else Path.home() / ".cache") / "kaizen_dist"


class _Held(NamedTuple):
    """A file in the cache."""

    fingerprint: str
    folder: str
    name: str
    bytes: int
    opened_ns: int
    """`CachedFolder.open` sets the time of access, whatever the mount's options are."""


class Cache:
    """A node's cache folder with its limit in bytes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._told_full = False

    def make_room(self, file: BinaryIO, size: int) -> None:
        """Gives `file`, on its way into the cache, its size at once, so that all who make room
        count it, and evicts what was opened longest ago until the whole is within the limit.

        Raises UsageError where that could not hold the one file.
        """
        if size > self.limit:
            raise UsageError(
                f"stream.cache_gb={self.limit / 1e9:g} is too little for a file of the stream, of "
                f"{size / 1e9:.3g} GB; raise it"
            )
        with _locked(self.root / ".lock"):
            file.truncate(size)
            files = self._files()
            over = sum(held.bytes for held in files) - self.limit
            for held in sorted(files, key=lambda held: held.opened_ns):
                if over <= 0:
                    return
                over -= self._evict(held)
        if over > 0 and not self._told_full:
            self._told_full = True
            say(
                f"{self.root}: {over / 1e9:.3g} GB over stream.cache_gb={self.limit / 1e9:g}, all "
                "of it in use; raise it"
            )

    def _files(self) -> list[_Held]:
        found = []
        for fingerprint in filter(_FINGERPRINT.fullmatch, self._entries()):
            for folder in filter(_TASK.fullmatch, self._entries(fingerprint)):
                for name, status in self._entries(fingerprint, folder).items():
                    if _FILE.fullmatch(name) and stat.S_ISREG(status.st_mode):
                        facts = (status.st_size, status.st_atime_ns)
                        found.append(_Held(fingerprint, folder, name, *facts))
        return found

    def _entries(self, *folders: str) -> dict[str, os.stat_result]:
        """What lies in a folder; nothing where a link is in its place."""
        found = {}
        with suppress(OSError), open_folder(self.root, *folders) as inside:
            for entry in os.scandir(inside):
                with suppress(FileNotFoundError):  # evicted meanwhile
                    found[entry.name] = entry.stat(follow_symlinks=False)
        return found

    def _evict(self, held: _Held) -> int:
        """Removes a file that nobody has open; the bytes that are free now."""
        with suppress(OSError), open_folder(self.root, held.fingerprint, held.folder) as inside:
            descriptor = open_regular(held.name, follow=False, folder=inside)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                unlink(inside, held.name)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        return 0


class CachedFolder:
    """A folder of a remote stream, read through the cache; see `storage.Storage`.

    `path` is the folder that holds its files in the cache.
    """

    most_open = 8  # an open file is not evicted, and opening one again is cheap
    fetches = True

    def __init__(self, cache: Cache, remote: Remote, fingerprint: str, folder: str) -> None:
        self.cache, self.remote, self.fingerprint, self.folder = cache, remote, fingerprint, folder
        self.path = cache.root / fingerprint / folder
        self._verified: dict[str, Identity] = {}
        """By file, what it was when its sha256 was last found right."""
        self._fetched: set[str] = set()
        self._told_small = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["CachedFolder"], tuple[Cache, Remote, str, str]]:
        return CachedFolder, (self.cache, self.remote, self.fingerprint, self.folder)

    def shown(self, name: str) -> str:
        return self.remote.shown(f"{self.folder}/{name}")

    def is_ready(self, name: str) -> bool:
        return name in self._verified and os.path.lexists(self.path / name)

    def open(self, name: str, facts: Facts) -> Handle:
        """A handle on a whole copy of the file, fetched if there is none.

        Raises:
            DataError: naming the URL that cannot be fetched.
            UsageError: if the cache cannot hold so large a file.
            WriteError: naming the cache that cannot be written.
        """
        try:
            self.cache.root.mkdir(parents=True, exist_ok=True)
            place = (self.cache.root, self.fingerprint, self.folder)
            while True:
                with open_folder(*place, make=True) as inside:
                    handle = self._present(inside, name, facts) or self._fetch(inside, name, facts)
                if handle is not None:
                    return handle
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
        except FileNotFoundError:
            return None
        except OSError as error:
            remove_no_file(error, inside, path)
            return None
        fcntl.flock(handle.descriptor, fcntl.LOCK_SH)
        status = os.fstat(handle.descriptor)
        if status.st_nlink == 0:  # evicted between opening and locking
            return None
        if self._verified.get(name) != handle.identity:
            if handle.sha256() != facts.sha256:
                say(f"{path}: the cached copy is damaged; fetching it again")
                self._fetched.discard(name)
                unlink(inside, name)
                return None
            self._verified[name] = handle.identity
        os.utime(handle.descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return handle

    def _fetch(self, inside: int, name: str, facts: Facts) -> Handle | None:
        """Brings a file into the cache; None if another process or thread just did."""
        path = self.path / name
        with _begin(inside, path, self.shown(name)) as file:
            if file is None:
                return None
            try:
                self.cache.make_room(file, facts.limit or 0)
                self.remote.fetch(f"{self.folder}/{name}", file, facts)
                os.fsync(file.fileno())
                os.rename(_part(name), name, src_dir_fd=inside, dst_dir_fd=inside)
            except BaseException:
                unlink(inside, _part(name))
                raise
            # The same lock goes on as a reader's: nothing comes between fetching and reading.
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            handle = Handle(path, os.dup(file.fileno()))
        self._verified[name] = handle.identity
        self._note_fetched(name)
        return handle

    def _note_fetched(self, name: str) -> None:
        """Says, once, that the cache is too small to be one."""
        with self._lock:
            again, told = name in self._fetched, self._told_small
            self._fetched.add(name)
            self._told_small = told or again
        if again and not told:
            say(
                f"{self.shown(name)} is fetched for the second time: what this node reads does not "
                f"fit into stream.cache_gb={self.cache.limit / 1e9:g}; raise it"
            )


def _part(name: str) -> str:
    """What a file is called on its way."""
    return f".{name}.part"


# ---- locks ------------------------------------------------------------------------------


@contextmanager
def _begin(inside: int, path: Path, shown: str) -> Iterator[BinaryIO | None]:
    """The part of the file `path`, open for writing and locked; None if meanwhile that is there.

    The lock is asked for again and again, never waited for: by its rename the file that is
    locked may become one that its readers have locked for as long as they like.
    """
    part = path.with_name(_part(path.name))
    with ExitStack() as stack:
        with waiting_for(f"{shown} (being fetched by another process of this node)"):
            while (file := _lock_part(inside, part)) is None:
                if exists(inside, path.name):
                    break
                time.sleep(_POLL_SECONDS)
        if file is not None:
            stack.enter_context(file)
            if exists(inside, path.name):  # since it was last looked for
                unlink(inside, part.name)
                file = None
        yield file


def _lock_part(inside: int, part: Path) -> BinaryIO | None:
    """The file open for writing, under an exclusive lock; None if another one has it."""
    try:
        file = os.fdopen(open_append(part.name, os.O_RDWR, folder=inside), "r+b")
    except OSError as error:
        remove_no_file(error, inside, part)
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, named = (
            os.fstat(file.fileno()),
            os.stat(part.name, dir_fd=inside, follow_symlinks=False),
        )
        if os.path.samestat(ours, named):
            if ours.st_nlink == 1:
                return file
            unlink(inside, part.name)  # it is somebody else's file too, not to be written to
    except (BlockingIOError, FileNotFoundError):
        pass  # another one has it, or has just renamed or removed it
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        file = os.fdopen(open_append(path, os.O_RDWR), "r+b")
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise OSError(error.errno, f"{path} is a link or no file; remove it") from error
    with file:
        with waiting_for(f"{path} (held by another process of this node)"):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield
