"""Checkpoints on disk: what makes one whole, which one is the newest, which ones stay.

    RUN/checkpoints/t01-s000400/       before step 400 of task 1 (both from 0)
        *.distcp, .metadata            the tensors, sharded (engine/snapshot.py)
        state.json                     everything else of the state: numbers and text
        manifest.json                  bytes and sha256 of every other file

A checkpoint is written to a hidden folder, its manifest last, and gets its name by one rename:
what bears a checkpoint's name was whole. Whether it still is, the manifest tells.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from kaizen_dist.errors import DataError
from kaizen_dist.files import atomic_write, cannot_write, file_sha256

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
_VERSION = 1
_NAME = re.compile(r"t(\d+)-s(\d+)")

Entries: TypeAlias = dict[str, dict[str, Any]]
"""{file name: {"bytes": int, "sha256": hex}}"""


def name_of(task: int, step: int) -> str:
    """What a checkpoint before a task's step is called."""
    return f"t{task:02d}-s{step:06d}"


def found(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=position)


def position(path: Path) -> tuple[int, int]:
    """(task, step) that a checkpoint stands before, from its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2])


# ---- writing ----------------------------------------------------------------------------


def hidden(run: Path, name: str) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return run / FOLDER / f".{name}.tmp"


def begin(run: Path, name: str) -> None:
    """Make the hidden folder, empty. Raises WriteError."""
    temporary = hidden(run, name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(temporary, error) from error


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Leave the part of the state that is numbers and text. Raises WriteError."""
    atomic_write(folder / STATE, json.dumps(state, indent=1).encode())


def entries(folder: Path, part: int = 0, parts: int = 1) -> Entries:
    """Size and digest of every `parts`-th file in a folder: hashing is shared by the ranks.

    Raises:
        OSError: if one cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names[part::parts]
    }


def commit(temporary: Path, files: Entries) -> Path:
    """Write the manifest and give the folder its name. Raises WriteError."""
    final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".tmp"))
    manifest = {"version": _VERSION, "files": dict(sorted(files.items()))}
    atomic_write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
    try:
        if final.exists():
            _remove(final)
        temporary.rename(final)
        descriptor = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(final, error) from error
    return final


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest `keep_last`, those at multiples of `keep_every` steps within
    a task (0 = none; those between tasks are at step 0), and what killed writers have left."""
    newest = found(run)
    for path in newest[:-keep_last]:
        if not keep_every or position(path)[1] % keep_every:
            _remove(path)
    for leftover in (run / FOLDER).glob(".*.gone"):
        shutil.rmtree(leftover, ignore_errors=True)


def _remove(path: Path) -> None:
    """Take a checkpoint its name before its files: half of one never looks like a whole."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


# ---- reading ----------------------------------------------------------------------------


def faults(path: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What differs from the manifest, in every `parts`-th of its files; empty = whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != _VERSION:
            return [f"{path / MANIFEST} is of version {manifest['version']}, not {_VERSION}"]
        listed = sorted(manifest["files"].items())
        missing = {STATE} - manifest["files"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path / MANIFEST} cannot be read ({error})"]
    wrong = [f"{path / MANIFEST} does not list {name}" for name in missing]
    return wrong + list(_wrong_files(path, listed[part::parts]))


def _wrong_files(path: Path, listed: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterable[str]:
    for name, entry in listed:
        file = path / name
        if file.parent != path:
            yield f"{path / MANIFEST} names a file outside of it: {name}"
        elif not file.is_file():
            yield f"{file} is missing"
        elif file.stat().st_size != entry["bytes"]:
            yield f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}"
        elif file_sha256(file) != entry["sha256"]:
            yield f"{file} is damaged: its sha256 is not the manifest's"


def read_state(path: Path) -> dict[str, Any]:
    """The numbers and texts of a checkpoint's state.

    Raises:
        DataError: if the file is no such thing.
    """
    try:
        return dict(json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path / STATE} cannot be read ({error})") from error
