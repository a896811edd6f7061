"""The state of a run as one file, saved after tasks and, if asked, every few steps.

    RUN/checkpoints/t01-s000400/state.pt     before step 400 of task 1

The state is plain data: tensors, numbers and text in nested mappings, so that it loads with
`weights_only=True`. A checkpoint is written to a hidden folder and renamed when complete;
what bears a checkpoint's name is whole.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from kaizen_dist.errors import DataError
from kaizen_dist.files import cannot_write

FOLDER = "checkpoints"
_FILE = "state.pt"
_NAME = re.compile(r"t(\d+)-s(\d+)")


def save(run: Path, task: int, step: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint and remove the ones before it.

    Raises:
        WriteError: if the disk is full or the folder cannot be written; earlier checkpoints
            are then still there.
    """
    folder = run / FOLDER
    path = folder / f"t{task:02d}-s{step:06d}"
    temporary = folder / f".{path.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with (temporary / _FILE).open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    for other in found(run):
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def found(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    named = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda pair: (int(pair[0][1]), int(pair[0][2])))]


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        DataError: if the file is missing or broken.
    """
    try:
        state = torch.load(path / _FILE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path / _FILE} is not a whole checkpoint ({first})") from error
    return dict(state)


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over every tensor of a state, by name."""
    content = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
