"""The work folder of a stream in preparation, and what is noted of its source afterwards.

STREAM/.prepare/settings.json   the settings and the source's fingerprint
STREAM/.prepare/source.tar      a compressed source, decompressed
STREAM/.prepare/lock            held while a process works in it
STREAM/source.json              afterwards: by it a change of the source is noticed
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import (
    atomic_write,
    cannot_write,
    make_folder,
    read_bytes,
    remove,
    remove_leftovers,
)
from kaizen_dist.common.locks import alone
from kaizen_dist.stream.manifest import WORK_FOLDER
from kaizen_dist.stream.manifest_schema import Settings
from kaizen_dist.stream.sources import source_stamp
from kaizen_dist.stream.sources.base import Source


class _Begun(BaseModel):
    settings: Settings
    source_fingerprint: str


class _SourceNote(BaseModel):
    sha256: str


@contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """The locked work folder of the stream in `root`, made where it is missing.

    Until the settings are noted in it, everything is removed if the block fails, so that a
    mistyped setting leaves nothing behind. Raises UsageError when another process works in it.
    """
    is_new = not root.exists()
    work = root / WORK_FOLDER
    make_folder(work)
    with alone(work / "lock", f"another process is preparing {root}: wait for it or end it"):
        remove_leftovers(root, *root.glob("*/"))
        try:
            yield work
        except BaseException:
            if _begun(root) is None:
                remove_work_folder(root)
                if is_new:
                    root.rmdir()
            raise


def remove_work_folder(root: Path) -> None:
    """Removes the work folder, and what killed writers left in the stream. Raises WriteError."""
    try:
        remove_leftovers(root, *root.glob("*/"))
        remove(root / WORK_FOLDER)
    except OSError as error:
        raise cannot_write(root / WORK_FOLDER, error) from error


def begin(root: Path, settings: Settings, source: Source | None = None) -> None:
    """Compares what was begun in the work folder with `settings` and, if given, the open source;
    notes both if nothing was.

    Raises UsageError for other settings, DataError for a source that has changed.
    """
    begun = _begun(root)
    if begun is not None:
        check_same(root, begun.settings, settings)
    if source is None:
        return
    fingerprint = source.fingerprint()
    if begun is None:
        begun = _Begun(settings=settings, source_fingerprint=fingerprint)
        atomic_write(_settings_file(root), begun.model_dump_json(indent=2).encode())
    elif begun.source_fingerprint != fingerprint:
        raise DataError(
            f"the source {settings.source} has changed since {root} was begun: "
            "delete the folder to start anew"
        )


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


def note_source(root: Path, source: Source) -> None:
    """Notes the source of a stream that is about to be finished, for `check_source`."""
    if digest := source_stamp(source.spec, source):
        noted = _SourceNote(sha256=digest).model_dump_json(indent=2) + "\n"
        atomic_write(root / "source.json", noted.encode())


def check_source(root: Path, spec: str) -> None:
    """Raises DataError when the source has changed since the stream in `root` was finished.

    Not checked: streams of earlier versions without source.json, and sources that are gone.
    """
    path = root / "source.json"
    try:
        noted = _SourceNote.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: delete it, or {root}, to go on") from error
    try:
        found, why = source_stamp(spec), ""
    except DataError as error:
        found, why = "", f" ({error})"
    if found is not None and found != noted.sha256:
        raise DataError(
            f"the source {spec} has changed since {root} was made from it{why}: give another "
            "--out, or delete the folder to make it anew; to keep the stream as it is, delete "
            f"{path}"
        )


def _settings_file(root: Path) -> Path:
    return root / WORK_FOLDER / "settings.json"


def _begun(root: Path) -> _Begun | None:
    path = _settings_file(root)
    try:
        return _Begun.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} cannot be read: delete {root} to start anew ({error})") from error
