"""Checkpoints that should hold finite numbers alone."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from kaizen_dist.engine.checkpoint import layout


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    kinds = FileSystemReader(path).read_metadata().state_dict_metadata
    found = {n: torch.empty(k.size, dtype=k.properties.dtype) for n, k in kinds.items()}
    dcp.load(found, storage_reader=FileSystemReader(path), no_dist=True)
    return found


def not_finite(run: Path) -> list[str]:
    """Every tensor of a run's checkpoints that is not finite, with its checkpoint."""
    return [
        f"{path.name}: {name}"
        for path in layout.found(run)
        for name, tensor in tensors_of(path).items()
        if not tensor.isfinite().all()
    ]
