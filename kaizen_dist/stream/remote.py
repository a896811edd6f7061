"""A stream that lies elsewhere: files by name from a URL, whole, checked and with patience.

In come `http(s)://`, `s3://` or any other URL that fsspec knows (or a path, for a slow mount)
and a file's name; out come its bytes, written to a file that is given, and their sha256. What
may pass by itself (a lost connection, a time-out, a server that is busy) is tried again after a
growing pause, and told of; what stays wrong is a DataError with the URL.
"""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from fsspec.core import url_to_fs

from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.stream.progress import LINE_EVERY, say
from kaizen_dist.stream.stall import waiting_for
from kaizen_dist.stream.storage import Facts

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second, third, ... attempt; after the last one it is given up."""

_PIECE = 1 << 20
_CONNECT_SECONDS, _SILENT_SECONDS = 30.0, 60.0
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_BUSY = {408, 425, 429}
"""HTTP statuses below 500 that ask to come again."""
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""Errors of the disk written to, which no other attempt at reading mends."""


def is_url(place: str | Path) -> bool:
    """Whether a stream is to be fetched: `scheme://...`."""
    return isinstance(place, str) and "://" in place


class Remote:
    """A folder at a URL, or on a path. `str()` names it without passwords or tokens."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self._files, _ = _open_file_system(self.place)

    def __reduce__(self) -> tuple[type["Remote"], tuple[str]]:
        return Remote, (self.place,)

    def __str__(self) -> str:
        return self.shown()

    def shown(self, name: str = "") -> str:
        """A file's URL, or the folder's, as a message may tell it."""
        joined = _join(self.place, name)
        if not is_url(joined):
            return joined
        parts = urlsplit(joined)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def fetch(self, name: str, sink: BinaryIO, facts: Facts) -> str:
        """Writes the whole file over what is in `sink`; the sha256 of its content in hex.

        Raises:
            DataError: naming the URL, when it cannot be had, or is not what `facts` say.
            OSError: when `sink` cannot be written.
        """
        pauses = iter(PAUSES)
        while True:
            sink.seek(0)
            try:
                return self._fetch_once(name, sink, facts)
            except Exception as error:  # every file system of fsspec has its own kinds
                if isinstance(error, OSError) and error.errno in _LOCAL:
                    raise
                reason, pause = _explain(error), next(pauses, None)
                if pause is None or _is_permanent(error):
                    raise DataError(
                        f"{self.shown(name)} cannot be fetched: {reason}; see whether the "
                        "server answers and has the whole stream, and run the same command again"
                    ) from error
            say(f"{self.shown(name)}: {reason}; trying again in {pause:g} s")
            sleep(pause)

    def _fetch_once(self, name: str, sink: BinaryIO, facts: Facts) -> str:
        digest, size = hashlib.sha256(), 0
        tell = _progress(self.shown(name), facts.bytes)
        with waiting_for(self.shown(name)) as waiting, self._open(name) as source:
            while piece := source.read(_PIECE):
                waiting.progressed()
                size += len(piece)
                if facts.limit is not None and size > facts.limit:
                    raise WrongContentError(f"more than {facts.limit:,} bytes came")
                digest.update(piece)
                sink.write(piece)
                tell(size)
        sink.truncate()
        sink.flush()
        if facts.bytes is not None and size != facts.bytes:
            raise WrongContentError(f"{size:,} of {facts.bytes:,} bytes came")
        if facts.sha256 is not None and digest.hexdigest() != facts.sha256:
            raise WrongContentError("its sha256 is not the one in stream.json")
        return digest.hexdigest()

    def _open(self, name: str) -> Any:
        """The file as a stream of bytes, read once from its beginning."""
        path = _join(self.place, name)
        if _is_http(path):
            # One plain GET. A size that is given keeps fsspec from asking for it first, where
            # it takes every error for a missing file.
            return self._files.open(path, "rb", block_size=0, size=1)
        return self._files.open(path, "rb")


class WrongContentError(Exception):
    """What came is not the file that was asked for."""


def _is_http(place: str) -> bool:
    return urlsplit(place).scheme in ("http", "https")


def _open_file_system(place: str) -> tuple[Any, str]:
    """fsspec's file system for a place. Raises UsageError when there is none."""
    options = {}
    if _is_http(place):
        options = {"client_kwargs": _http_options(place)}
    try:
        found: tuple[Any, str] = url_to_fs(place, **options)
    except ImportError as error:
        raise UsageError(
            f"--stream {place.partition('://')[0]}://...: {error}; "
            "`pip install 'kaizen-dist[remote]'` brings what http and s3 need"
        ) from None
    except ValueError as error:
        raise UsageError(f"--stream {place}: {error}") from None
    return found


def _http_options(place: str) -> dict[str, Any]:
    """How long aiohttp waits: a whole shard may take its time, a silent server may not."""
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        raise UsageError(
            f"--stream {place}: needs aiohttp: `pip install 'kaizen-dist[remote]'`"
        ) from None
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    return {"timeout": timeout, "trust_env": True}


def _join(place: str, name: str) -> str:
    """A file's URL or path; a query, as of signed URLs, stays behind the path."""
    if not name:
        return place
    base, mark, query = place.partition("?") if _is_http(place) else (place, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def _is_permanent(error: Exception) -> bool:
    # Errors of HTTP have a status, others have none.
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _BUSY
    return isinstance(error, _PERMANENT)


def _explain(error: Exception) -> str:
    """One line, without the URL that some errors carry, password and all."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(status, int):
        return f"the server answers {status}"
    if isinstance(error, WrongContentError):
        return str(error)
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}".splitlines()[0].rstrip(": ")


def _progress(shown: str, total: int | None) -> Callable[[int], None]:
    """To be told how many bytes have come; says so when it takes long."""
    said = monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if monotonic() - said > LINE_EVERY:
            said = monotonic()
            share = f" of {total / 1e6:,.0f}" if total else ""
            say(f"fetching {shown}: {done / 1e6:,.0f}{share} MB")

    return tell
