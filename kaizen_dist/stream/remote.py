"""Fetching files of a stream from a URL, with retries, bounds and checksums.

A URL (`http(s)://`, `s3://` or any other that fsspec knows; or a path, for a slow mount) must hold
no secret, because a run keeps it in files and logs: passwords and tokens come from where aiohttp
and fsspec look for them.

Transient errors (a lost connection, a time-out, a busy server) are reported and tried again after
a growing pause; others are a DataError with the URL. A file is not read beyond its largest allowed
size, and an attempt ends where fewer than 1,000 bytes a second arrive.
"""

import errno
import hashlib
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from kaizen_dist.common.console import LINE_EVERY, say
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import open_to_read
from kaizen_dist.common.io_watchdog import waiting_for
from kaizen_dist.stream.field_errors import shortened
from kaizen_dist.stream.reader import Facts

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second, third, ... attempt."""

_PIECE = 1 << 20
_CONNECT_SECONDS, _SILENT_SECONDS = 30.0, 60.0
_SLOWEST = 1000
"""Bytes a second, averaged over `_SILENT_SECONDS`; below, the server counts as silent."""
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_BUSY = {408, 425, 429}
"""HTTP statuses below 500 that are transient."""
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""Errors of the disk written to, which another attempt does not cure."""


def is_url(place: str | Path) -> bool:
    """Whether a stream is to be fetched: `scheme://...`."""
    return isinstance(place, str) and "://" in place


def checked_url(place: str) -> str:
    """The URL, if it is one that can be read and kept in a run's files.

    Raises UsageError saying what is wrong with it; a secret in it is not shown.
    """
    scheme, _, rest = place.partition("://")
    wrong = _wrong_url(place, scheme.lower())
    if not wrong:
        return place
    shown = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    raise UsageError(f"--stream {shortened(f'{scheme}://{shown}')}: {wrong}")


def _wrong_url(place: str, scheme: str) -> str:
    """What is wrong with a URL; "" if nothing is."""
    if not place.isprintable() or any(c.isspace() for c in place):
        return "control characters and spaces are no part of a URL; spell them %20 and so on"
    if "::" in place and not _is_http(place):
        return "chained protocols are not read"
    try:
        parts = urlsplit(place)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:  # whose text may quote a password
        return "not a URL: look at its port and brackets"
    if parts.password is not None or parts.query or (_is_http(place) and parts.username):
        return (
            "a password, token or query in the URL would stand in the run's files and logs; http "
            "takes names and passwords from ~/.netrc and tokens from FSSPEC_HTTP, s3 its keys from "
            "~/.aws or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/data.md)"
        )
    if _is_http(place):
        return "" if parts.hostname else "it names no host"
    if scheme in ("file", "local"):
        return "give the folder's path, without the scheme"
    if not parts.netloc and not parts.path.strip("/"):
        return "it names no folder"
    if parts.scheme not in fsspec.available_protocols():
        return f"no protocol of fsspec is called {scheme!r}; use http, https, s3 or another one"
    return ""


class Remote:
    """A folder at a URL, or on a path. `str()` names it; raises UsageError for a URL that cannot
    be read."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self._files = _file_system(checked_url(place)) if is_url(place) else None

    def __reduce__(self) -> tuple[type["Remote"], tuple[str]]:
        return Remote, (self.place,)

    def __str__(self) -> str:
        return self.shown()

    def shown(self, name: str = "") -> str:
        """A file's URL or path, or the folder's, as a message may tell it."""
        return f"{self.place}/{name}" if name else self.place

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
        digest, size, shown = hashlib.sha256(), 0, self.shown(name)
        of = f" of {facts.bytes / 1e6:,.0f}" if facts.bytes else ""
        told = since = monotonic()
        before = 0
        with waiting_for(shown) as waiting, self._open(name) as source:
            while piece := source.read(_PIECE):
                waiting.progressed()
                size += len(piece)
                if facts.limit is not None and size > facts.limit:
                    raise WrongContentError(f"more than {facts.limit:,} bytes came")
                digest.update(piece)
                sink.write(piece)
                if monotonic() - told > LINE_EVERY:
                    told = monotonic()
                    say(f"fetching {shown}: {size / 1e6:,.0f}{of} MB")
                if (seconds := monotonic() - since) >= _SILENT_SECONDS:
                    if size - before < _SLOWEST * seconds:
                        raise TimeoutError(f"{size - before:,} bytes came in {seconds:.0f} s")
                    since, before = monotonic(), size
        sink.truncate()
        sink.flush()
        if facts.bytes is not None and size != facts.bytes:
            raise WrongContentError(f"{size:,} of {facts.bytes:,} bytes came")
        if facts.sha256 is not None and digest.hexdigest() != facts.sha256:
            raise WrongContentError("its sha256 is not the one in stream.json")
        return digest.hexdigest()

    def _open(self, name: str) -> Any:
        """The file, open for one sequential read."""
        if self._files is None:
            return open_to_read(Path(self.shown(name)))
        if _is_http(self.place):
            # One plain GET. A size that is given keeps fsspec from asking for it first, where
            # it takes every error for a missing file.
            return self._files.open(self.shown(name), "rb", block_size=0, size=1)
        return self._files.open(self.shown(name), "rb")


class WrongContentError(Exception):
    """The bytes received are not those of the file asked for."""


def _is_http(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _file_system(place: str) -> Any:
    """fsspec's file system for a URL. Raises UsageError when it cannot be had."""
    try:
        if _is_http(place):
            return fsspec.filesystem("http", client_kwargs=_http_options())
        return url_to_fs(place)[0]
    except ImportError as error:
        raise UsageError(
            f"--stream {place}: {error}; `pip install 'kaizen-dist[remote]'` brings what http and "
            "s3 need"
        ) from None
    except Exception as error:  # some log in already, and each has its own kinds of error
        raise UsageError(f"--stream {place}: {_explain(error)}") from error


def _http_options() -> dict[str, Any]:
    """aiohttp's time-outs (none for the whole file, one for silence), and no compression in
    transit, which would hide the size."""
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    headers = {"Accept-Encoding": "identity"}
    return {"timeout": timeout, "headers": headers, "trust_env": True}


def _is_permanent(error: Exception) -> bool:
    # Errors of HTTP have a status, others have none.
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _BUSY
    return isinstance(error, _PERMANENT)


def _explain(error: Exception) -> str:
    """The reason on one line; a server may have written a part of it."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(status, int):
        return f"the server answers {status}"
    if isinstance(error, WrongContentError):
        return str(error)
    text = getattr(error, "strerror", None) or str(error)
    return shortened(f"{type(error).__name__}: {text}".splitlines()[0].rstrip(": "))
