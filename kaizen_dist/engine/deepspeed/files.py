"""DeepSpeed's checkpoint files within a task: captured in memory, written and read here.

DeepSpeed's own `save_checkpoint` and `load_checkpoint` define the content and the file names of the
state (stage 0 to 2: one file of the model, parameters, teacher, momentum network and queue
included; stage 3: one for each rank; from stage 1 on each rank's part of the optimizer). They use a
checkpoint engine, which is replaced here: it copies to host memory, so that training goes on while
the copy is written and no rank waits for one whose disk is full; and it keeps plain data only, so
that reading executes no pickled code.
"""

import os
import pickle
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from kaizen_dist.common.errors import DataError, UsageError, WriteError
from kaizen_dist.engine.deepspeed.library import CheckpointCommitInfo, CheckpointEngine
from kaizen_dist.engine.divergence import all_finite

_TAG = "state"
_LEFT_OUT = object()


class _Memory(CheckpointEngine):
    """Captures the files that DeepSpeed writes: {file name: plain data on the CPU}."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.files: dict[str, Any] = {}
        self._optimizer = module.optimizer if module.zero_optimization() else None

    @override
    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    @override
    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    @override
    def save(self, state_dict: Any, path: str) -> None:
        self.files[Path(path).name] = _plain(state_dict)

    @override
    def load(self, path: str, map_location: Any = None) -> Any:
        state = torch.load(path, map_location=map_location, weights_only=True)
        if self._optimizer is not None and "optimizer_state_dict" in state:
            # Not stored; without half precision it has no state.
            state["optimizer_state_dict"]["loss_scaler"] = self._optimizer.loss_scaler
        return state

    @override
    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


class ZeROSnapshot:
    """See `engine.base.Snapshot`; a copy of this rank's files."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    def finite(self) -> bool:
        return all_finite(_tensors(self._files))

    def write(self, folder: Path) -> None:
        for name, content in self._files.items():
            path = folder / name
            try:
                with path.open("wb") as file:
                    torch.save(content, file)
                    file.flush()
                    os.fsync(file.fileno())
            # torch reports a full disk as either.
            except (OSError, RuntimeError) as error:
                raise WriteError(f"cannot write {path}: {error}") from error


def snapshot_of(module: Any) -> ZeROSnapshot:
    """A copy of the state of a `DeepSpeedEngine`; all ranks together."""
    memory = _Memory(module)
    module.checkpoint_engine = memory
    # DeepSpeed adds scripts, which go to a scratch folder.
    with tempfile.TemporaryDirectory() as scratch:
        module.save_checkpoint(scratch, tag=_TAG, save_latest=False)
    return ZeROSnapshot(memory.files)


def load(module: Any, folder: Path, world_size: int) -> None:
    """Load a snapshot from a folder into a new `DeepSpeedEngine`; all ranks together.

    Raises:
        UsageError: if it was saved by another engine, or by another number of ranks.
        DataError: if it does not fit the model.
    """
    if not list(folder.glob("*_model_states.pt")):
        raise UsageError(
            f"parallel.engine: {folder} was saved within a task by another engine than deepspeed; "
            "go on with that one until the task ends"
        )
    saved_by = len(list(folder.glob("*_optim_states.pt")))
    if saved_by not in (0, world_size):
        raise UsageError(
            f"{folder} was saved within a task by {saved_by} ranks, and DeepSpeed goes on there "
            f"with as many only, not with {world_size}; start {saved_by} ranks until the task "
            "ends. (parallel.engine=fsdp takes any number at any time.)"
        )
    module.checkpoint_engine = _Memory(module)
    try:
        module.load_checkpoint(str(folder.parent), tag=folder.name)
    except (OSError, RuntimeError, LookupError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{folder}: not the state of this configuration ({error})") from error


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of nested data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _plain(value: Any) -> Any:
    """A copy of nested data with tensors on the CPU; objects of DeepSpeed's own (the loss
    scaler of half precision, addresses within its buffers) are left out."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        parts = ((key, _plain(part)) for key, part in value.items())
        return {key: part for key, part in parts if part is not _LEFT_OUT}
    if isinstance(value, list | tuple):
        kept = [part for part in map(_plain, value) if part is not _LEFT_OUT]
        return kept if isinstance(value, list) else tuple(kept)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return _LEFT_OUT
