"""Files of a remote stream on this node's own disk, fetched when first needed, up to a limit.

    CACHE_DIR/FINGERPRINT/task-00/train-000000.tar            a file of that stream, whole
    CACHE_DIR/FINGERPRINT/task-00/.train-000000.tar.part      one on its way, locked by who fetches
    CACHE_DIR/.lock                                           held while room is made

In comes a file's name with its sha256, out comes an open handle on a copy that has it. All
ranks and runs of a node share the folder and need no one to keep order: a file is fetched by
whoever first locks its `.part` while the others wait for that lock, appears under its name by a
rename, and is held open under a shared lock, so that whoever makes room for another file
(least recently opened first) passes over those in use. The kernel drops the locks of a
process that dies. What lies in the cache is not trusted: a process checks the sha256 of a file
before it first reads it, and fetches it again where it differs.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kaizen_dist.errors import WriteError
from kaizen_dist.stream.progress import say
from kaizen_dist.stream.remote import Remote
from kaizen_dist.stream.stall import waiting_for
from kaizen_dist.stream.storage import Facts, Handle, Identity, open_handle

_FILES = "[0-9a-f]" * 64 + "/*/*"
"""A fingerprint, a task's folder, a file."""
_POLL_SECONDS = 0.05


def default_cache_dir() -> Path:
    """`kaizen_dist` in the user's cache folder, as the XDG base directory specification has it."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the specification a relative path is to be ignored.
    return (named if named.is_absolute() else Path.home() / ".cache") / "kaizen_dist"


class Cache:
    """A node's cache folder with its limit in bytes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._told_full = False

    def make_room(self, file: BinaryIO, size: int) -> None:
        """Gives `file`, on its way into the cache, its size at once, so that all who make room
        count it, and evicts what was opened longest ago until the whole is within the limit."""
        with _locked(self.root / ".lock"):
            file.truncate(size)
            files = self._files()
            over = sum(status.st_size for _, status in files) - self.limit
            # `CachedFolder.open` sets the time of access, whatever the mount's options are.
            for path, _ in sorted(files, key=lambda file: file[1].st_atime_ns):
                if over <= 0:
                    return
                over -= _evict(path)
        if over > 0 and not self._told_full:
            self._told_full = True
            say(
                f"{self.root}: {over / 1e9:.3g} GB over stream.cache_gb={self.limit / 1e9:g}, all "
                "of it in use; raise it"
            )

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """What is the cache's own: whatever else lies in the folder is never touched."""
        found = []
        for path in self.root.glob(_FILES):
            with suppress(FileNotFoundError):  # evicted meanwhile
                found.append((path, path.lstat()))
        return found


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
        return name in self._verified and (self.path / name).exists()

    def open(self, name: str, facts: Facts) -> Handle:
        """A handle on a whole copy of the file, fetched if there is none.

        Raises:
            DataError: naming the URL that cannot be fetched.
            WriteError: naming the cache that cannot be written.
        """
        try:
            while True:
                handle = self._present(name, facts) or self._fetch(name, facts)
                if handle is not None:
                    return handle
        except OSError as error:
            raise WriteError(
                f"the cache {self.cache.root} cannot be used: {error.strerror or error}; free "
                "space, or name a folder on another disk of this machine with stream.cache_dir"
            ) from error

    def _present(self, name: str, facts: Facts) -> Handle | None:
        """A handle on the cached file, under a shared lock; None if it is not there or damaged."""
        path = self.path / name
        try:
            handle = open_handle(path)
        except FileNotFoundError:
            return None
        fcntl.flock(handle.descriptor, fcntl.LOCK_SH)
        status = os.fstat(handle.descriptor)
        if status.st_nlink == 0:  # evicted between opening and locking
            return None
        if self._verified.get(name) != handle.identity:
            if handle.sha256() != facts.sha256:
                say(f"{path}: the cached copy is damaged; fetching it again")
                self._fetched.discard(name)
                path.unlink(missing_ok=True)
                return None
            self._verified[name] = handle.identity
        os.utime(handle.descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return handle

    def _fetch(self, name: str, facts: Facts) -> Handle | None:
        """Brings a file into the cache; None if another process or thread just did."""
        path = self.path / name
        self.path.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{name}.part")
        with _begin(part, path, self.shown(name)) as file:
            if file is None:
                return None
            try:
                self.cache.make_room(file, facts.bytes or 0)
                self.remote.fetch(f"{self.folder}/{name}", file, facts)
                os.fsync(file.fileno())
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
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


def _evict(path: Path) -> int:
    """Removes a file that nobody has open; the bytes that are free now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return os.fstat(descriptor).st_size
    except OSError:
        return 0
    finally:
        os.close(descriptor)


@contextmanager
def _begin(part: Path, path: Path, shown: str) -> Iterator[BinaryIO | None]:
    """The file `part`, open for writing and locked; None if meanwhile `path` is there.

    The lock is asked for again and again, never waited for: by its rename the file that is
    locked may become one that its readers have locked for as long as they like.
    """
    with ExitStack() as stack:
        with waiting_for(f"{shown} (being fetched by another process of this node)"):
            while (file := _lock_part(part)) is None:
                if path.exists():
                    break
                time.sleep(_POLL_SECONDS)
        if file is not None:
            stack.enter_context(file)
            if path.exists():  # since it was last looked for
                part.unlink()
                file = None
        yield file


def _lock_part(part: Path) -> BinaryIO | None:
    """The file open for writing, under an exclusive lock; None if another one has it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(part, flags, 0o666), "r+b")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(part.stat(), os.fstat(file.fileno())):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass  # another one has it, or has just renamed or removed it
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield
