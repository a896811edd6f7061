"""Checkpoints on disk: writing, finding, pruning and verifying them.

    RUN/checkpoints/t01-s000400/       before step 400 of task 1 (both from 0)
        *.distcp, .metadata            the tensors, sharded (engine/checkpoint/tensors.py)
        state.json                     everything else of the state: numbers and text
        manifest.json                  bytes and sha256 of every other file

A checkpoint is written to a hidden folder, its manifest last, and gets its name by one rename: a
folder with a checkpoint's name was complete then. The manifest verifies that it still is.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from kaizen_dist.common.files import atomic_write, read_json, remove, sync_folder, writing
from kaizen_dist.common.inventory import (
    Inventory,
    StrictModel,
    changed,
    inventory,
    reasons,
    unlisted,
)
from kaizen_dist.common.run_layout import CHECKPOINTS

MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"t(\d+)-s(\d+)")


class CheckpointManifest(StrictModel):
    """The content of `manifest.json`."""

    version: Literal[1]
    files: Inventory


def name_of(task: int, step: int) -> str:
    """The name of the checkpoint before a step of a task."""
    return f"t{task:02d}-s{step:06d}"


def found(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
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
    """The folder in which a checkpoint is written before it is renamed."""
    return run / CHECKPOINTS / f".{name}.tmp"


def begin(run: Path, name: str) -> None:
    """Make the hidden folder, empty. Raises WriteError."""
    temporary = hidden(run, name)
    with writing(temporary):
        remove(temporary)
        temporary.mkdir(parents=True)


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the part of the state that is not tensors. Raises WriteError."""
    atomic_write(folder / STATE, json.dumps(state, indent=1).encode())


def entries(folder: Path, part: int = 0, parts: int = 1) -> Inventory:
    """Size and digest of every `parts`-th file in a folder: hashing is shared by the ranks.

    Raises:
        OSError: if one cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return inventory(folder, names[part::parts])


def commit(temporary: Path, files: Inventory) -> Path:
    """Write the manifest and give the folder its name. Raises WriteError."""
    final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".tmp"))
    manifest = CheckpointManifest(version=1, files=dict(sorted(files.items())))
    atomic_write(temporary / MANIFEST, manifest.model_dump_json(indent=1).encode())
    with writing(final):
        if os.path.lexists(final):
            set_aside(final)
        temporary.rename(final)
        sync_folder(final.parent)
    return final


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest `keep_last`, those at multiples of `keep_every` steps within
    a task (0 = none; those between tasks are at step 0), and what killed writers have left."""
    newest = found(run)
    for path in newest[:-keep_last]:
        if not keep_every or position(path)[1] % keep_every:
            set_aside(path)
    for leftover in (run / CHECKPOINTS).glob(".*.gone"):
        with suppress(OSError):  # in use somewhere; the next time, then
            remove(leftover)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint before its files are removed, so that an incomplete one never has a
    checkpoint's name; its path until the next `prune`. Raises OSError."""
    gone = path.with_name(f".{path.name}.gone")
    remove(gone)
    return path.rename(gone)


# ---- reading ----------------------------------------------------------------------------


def faults(path: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Differences from the manifest in every `parts`-th of its files; empty if there are none."""
    try:
        if path.is_symlink():
            return [f"{path} is a link, not a checkpoint of this run"]
        manifest = CheckpointManifest.model_validate(read_json(path / MANIFEST, follow=False))
    except (OSError, ValueError) as error:
        return [f"{path / MANIFEST} cannot be read ({reasons(error)})"]
    missing = [] if STATE in manifest.files else [f"{path / MANIFEST} does not list {STATE}"]
    strange = unlisted(path, manifest.files, MANIFEST)
    return missing + strange + changed(path, manifest.files, part, parts)
