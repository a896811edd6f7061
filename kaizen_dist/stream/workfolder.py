"""The work folder of a stream that is being prepared: what is already done, and for what.

    STREAM/.prepare/settings.json              the settings and the source's fingerprint
    STREAM/.prepare/task-00-train-000000.json  per finished shard: its description, its bad images
    STREAM/.prepare/task-00-train-000000.npy   and its INDEX rows (written first)
    STREAM/.prepare/source.tar                 a compressed source, decompressed
    STREAM/.prepare/lock                       held while a process is at work

In come results of shards, to be kept; out come those of an earlier, interrupted session. What
stays of it is STREAM/source.json, by which a later `prepare` notices that the source has changed.
"""

import hashlib
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import (
    atomic_write,
    cannot_write,
    make_folder,
    read_bytes,
    remove_leftovers,
)
from kaizen_dist.common.locks import alone
from kaizen_dist.stream.index import decode_index, encode_index
from kaizen_dist.stream.manifest import WORK_FOLDER
from kaizen_dist.stream.manifest_schema import BadImage, Settings
from kaizen_dist.stream.shards import ShardInfo
from kaizen_dist.stream.sources import stamp

_SOURCE = "source.json"


class ShardResult(BaseModel):
    """A finished shard."""

    shard: ShardInfo
    bad: list[BadImage]
    rows_sha256: str | None = None
    """Of the file with its INDEX rows; None: not noted by an earlier version."""


class _Begun(BaseModel):
    settings: Settings
    source_fingerprint: str


@dataclass(frozen=True)
class WorkFolder:
    """The work folder of the stream in `root`."""

    root: Path

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / WORK_FOLDER

    def begin(self, settings: Settings, source_fingerprint: str) -> None:
        """Notes what is being prepared, unless that was done before.

        Raises DataError when the source is no longer the one that was begun with.
        """
        begun = self._begun()
        if begun is None:
            begun = _Begun(settings=settings, source_fingerprint=source_fingerprint)
            atomic_write(self._settings_file, begun.model_dump_json(indent=2).encode())
        elif begun.source_fingerprint != source_fingerprint:
            raise DataError(
                f"the source {settings.source} has changed since {self.root} was begun: "
                "delete the folder to start anew"
            )

    def check(self, settings: Settings) -> None:
        """Raises UsageError when other settings were begun with."""
        if begun := self._begun():
            check_same(self.root, begun.settings, settings)

    def keep(self, name: str, result: ShardResult, rows: NDArray[Any]) -> None:
        """Keeps the result of the shard `name`, whose tar is already in place."""
        digest = atomic_write(self.path / f"{name}.npy", encode_index(rows))
        noted = result.model_copy(update={"rows_sha256": digest})
        atomic_write(self.path / f"{name}.json", noted.model_dump_json().encode())

    def result(self, name: str, folder: Path) -> tuple[ShardResult, NDArray[Any]] | None:
        """What was kept of a shard, if it was finished and its tar still lies in `folder`."""
        try:
            result = ShardResult.model_validate_json(read_bytes(self.path / f"{name}.json"))
            encoded = read_bytes(self.path / f"{name}.npy")
            rows, digest = decode_index(encoded), hashlib.sha256(encoded).hexdigest()
            status = (folder / result.shard.name).stat()
        except (OSError, ValueError):
            return None
        whole = (
            len(rows) == result.shard.samples
            and result.rows_sha256 in (None, digest)
            and stat.S_ISREG(status.st_mode)
            and status.st_size == result.shard.bytes
        )
        return (result, rows) if whole else None

    def remove(self) -> None:
        """Removes it, with what killed writers left in the stream. Raises WriteError."""
        try:
            remove_leftovers(self.root, *self.root.glob("*/"))
            if self.path.exists():
                shutil.rmtree(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    @property
    def _settings_file(self) -> Path:
        return self.path / "settings.json"

    def _begun(self) -> _Begun | None:
        try:
            return _Begun.model_validate_json(read_bytes(self._settings_file))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{self._settings_file} cannot be read: delete {self.root} to start anew ({error})"
            ) from error


@contextmanager
def work_folder(root: Path) -> Iterator[WorkFolder]:
    """The locked work folder of `root`, made where it is missing.

    Until `begin`, everything is taken back if the block fails, so that a mistyped setting
    leaves nothing in the way of the next try. Raises UsageError when another process is at
    work in it.
    """
    is_new = not root.exists()
    work = WorkFolder(root)
    make_folder(work.path)
    busy = f"another process is preparing {work.path.parent}: wait for it or end it"
    with alone(work.path / "lock", busy):
        remove_leftovers(root, *root.glob("*/"))
        try:
            yield work
        except BaseException:
            if work._begun() is None:
                work.remove()
                if is_new:
                    root.rmdir()
            raise


def check_same(root: Path, begun: Settings, wanted: Settings) -> None:
    """Raises UsageError naming every setting in which the two differ."""
    have, want = begun.model_dump(), wanted.model_dump()
    differing = [
        f"{name.removesuffix('_wanted')} is {have[name]!r}, not {want[name]!r}"
        for name in have
        if have[name] != want[name]
    ]
    if differing:
        raise UsageError(
            f"{root} holds a stream of other settings: {'; '.join(differing)}. "
            "Give these settings, another folder, or delete this one"
        )


class _Noted(BaseModel):
    sha256: str


def note_source(root: Path, digest: str | None) -> None:
    """Notes by what a change of the source can be seen, see `sources.stamp`. Raises WriteError."""
    if digest is not None:
        noted = _Noted(sha256=digest).model_dump_json(indent=2) + "\n"
        atomic_write(root / _SOURCE, noted.encode())


def check_source(root: Path, spec: str) -> None:
    """Raises DataError when the source has changed since the stream in `root` was finished.

    Streams of earlier versions say nothing of it, and a source that is gone is not asked.
    """
    try:
        noted = _Noted.model_validate_json(read_bytes(root / _SOURCE))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{root / _SOURCE}: damaged: delete it, or {root}, to go on") from error
    try:
        found, why = stamp(spec), ""
    except DataError as error:
        found, why = "", f" ({error})"
    if found is not None and found != noted.sha256:
        raise DataError(
            f"the source {spec} has changed since {root} was made from it{why}: give another "
            "--out, or delete the folder to make it anew; to keep the stream as it is, delete "
            f"{root / _SOURCE}"
        )
