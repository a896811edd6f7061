"""The work folder of tasks in preparation.

STREAM/.prepare/settings.json   the settings, the source's fingerprint, and the stream's
STREAM/.prepare/source.tar      a compressed source, decompressed
STREAM/.prepare/lock            held while a process works in it
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from kaizen_dist.stream.manifest import WORK_FOLDER, load_manifest
from kaizen_dist.stream.manifest_entries import Settings
from kaizen_dist.stream.sources.base import Source


class Begun(BaseModel):
    """What is in preparation."""

    settings: Settings
    source_fingerprint: str
    after: str = ""
    """Fingerprint of the stream that the tasks are added to; "" for a new one."""


@contextmanager
def work_folder(root: Path, shared: bool = False) -> Iterator[Path]:
    """The locked work folder of the stream in `root`, made where it is missing; `shared` by several
    processes that work in it together.

    Until the settings are noted in it, everything is removed if the block fails, so that a
    mistyped setting leaves nothing behind. Raises UsageError when another process works in it.
    """
    is_new = not root.exists()
    work = root / WORK_FOLDER
    make_folder(work)
    busy = f"another process is preparing {root}: wait for it or end it"
    with alone(work / "lock", busy, shared=shared):
        if not shared:
            remove_leftovers(root, *root.glob("*/"))
        try:
            yield work
        except BaseException:
            if begun(root) is None and not shared:
                remove_work_folder(root)
                if is_new:
                    root.rmdir()
            raise


def clear_finished(root: Path) -> None:
    """Removes what is left of a finished preparation; what is being added now stays."""
    if (root / WORK_FOLDER).is_dir():
        with suppress(UsageError), work_folder(root):
            if (noted := begun(root)) is None or noted.after != load_manifest(root).fingerprint:
                remove_work_folder(root)


def remove_work_folder(root: Path) -> None:
    """Removes the work folder, and what killed writers left in the stream. Raises WriteError."""
    try:
        remove_leftovers(root, *root.glob("*/"))
        remove(root / WORK_FOLDER)
    except OSError as error:
        raise cannot_write(root / WORK_FOLDER, error) from error


def begin(root: Path, settings: Settings, after: str, source: Source | None = None) -> None:
    """Compares what was begun in the work folder with `settings` and, if given, the open source;
    notes both if nothing was.

    Raises UsageError for other settings, DataError for a source that has changed.
    """
    noted = begun(root)
    if noted is not None and noted.after != after:
        # Its tasks are in the stream already, or it was begun on another one that lay here.
        remove(root / WORK_FOLDER / "settings.json")
        noted = None
    if noted is not None:
        check_same(root, noted.settings, settings, extending=bool(after))
    if source is None:
        return
    fingerprint = source.fingerprint()
    if noted is None:
        noted = Begun(settings=settings, source_fingerprint=fingerprint, after=after)
        atomic_write(_settings_file(root), noted.model_dump_json(indent=2).encode())
    elif noted.source_fingerprint != fingerprint:
        anew = root / WORK_FOLDER if after else root
        raise DataError(
            f"the source {settings.source} has changed since {root} was begun: delete {anew} to "
            "start anew"
        )


def check_same(root: Path, begun: Settings, wanted: Settings, extending: bool = False) -> None:
    """Raises UsageError naming every setting in which the two differ."""
    have, want = vars(begun), vars(wanted)
    differing = [
        f"{name.removesuffix('_wanted')} is {have[name]!r}, not {want[name]!r}"
        for name in have
        if have[name] != want[name]
    ]
    if differing and extending:
        raise UsageError(
            f"other tasks for {root} are begun and not finished: {'; '.join(differing)}. Give "
            f"these settings to finish them, or delete {root / WORK_FOLDER} to give them up"
        )
    if differing:
        raise UsageError(
            f"{root} was prepared with other settings: {'; '.join(differing)}. "
            "Give these settings, or another folder; `kaizen-dist extend` adds tasks"
        )


def begun(root: Path) -> Begun | None:
    """What is in preparation in `root`, if anything. Raises DataError."""
    path = _settings_file(root)
    try:
        return Begun.model_validate_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} cannot be read: delete {root} to start anew, or {path.parent} to keep the "
            f"tasks that it has ({error})"
        ) from error


def _settings_file(root: Path) -> Path:
    return root / WORK_FOLDER / "settings.json"
