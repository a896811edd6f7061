"""A run's tensors on disk, sharded over the ranks by torch.distributed.checkpoint (DCP).

A replicated tensor is written by one rank, a shard by the rank that holds it, and another number of
ranks (or another sharding) can read them. Tensors are named `learner.NAME` and, within a task,
`optimizer.PARAMETER.KEY`. The rest of a run's state is JSON beside them (layout.py).

DCP's own index (`.metadata`) is a pickle without checksums: it is read only after the manifest has
been verified, and by `reader.TensorReader`, which executes nothing of it.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kaizen_dist.common.errors import DataError, WriteError
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.checkpoint.reader import TensorReader
from kaizen_dist.engine.divergence import all_finite
from kaizen_dist.learner.learner import Learner

# About a single process that saves, which is intended.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

_LEARNER = "learner."
_OPTIMIZER = "optimizer."


class TensorSnapshot:
    """See `engine.base.Snapshot`; a copy of named tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], context: RankContext) -> None:
        self._context = context
        # Copies from a GPU overlap and are waited for once.
        self._tensors = {name: _on_host(t) for name, t in tensors.items()}
        if context.device.type == "cuda":
            torch.cuda.current_stream(context.device).synchronize()

    def finite(self) -> bool:
        return all_finite(self._tensors.values())

    def write(self, folder: Path) -> None:
        writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
        try:
            dcp.save(
                self._tensors,
                storage_writer=writer,
                process_group=self._context.background,
                no_dist=self._context.world_size == 1,
            )
        except CheckpointException as error:
            reasons = "; ".join(f"rank {r}: {e[0]}" for r, e in sorted(error.failures.items()))
            raise WriteError(f"cannot write {folder}: {reasons}") from error
        except OSError as error:
            raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error


def learner_tensors(state: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """A learner's tensors by the names they have in a checkpoint."""
    return {_LEARNER + name: tensor for name, tensor in state}


def optimizer_tensors(learner: Learner, optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's likewise; parameters without a gradient so far have none."""
    states: dict[Tensor, Any] = {
        p: optimizer.state[p] for p in learner.parameters() if p in optimizer.state
    }
    return _named_states(learner, states)


def restore(
    folder: Path,
    learner: Learner,
    optimizer: Optimizer | None,
    context: RankContext,
    others: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Read the learner, (within a task) its optimizer, and those of the other tensors that are
    stored, in place; all ranks together.

    Raises:
        DataError: if the checkpoint's index is invalid or lists other tensors.
    """
    reader = TensorReader(folder)
    # Before DCP does, which would bury the reason.
    kept = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = learner_tensors(learner.state_dict().items())
    wanted |= {name: tensor for name, tensor in others.items() if name in kept}
    states: dict[Tensor, dict[str, Tensor]] = {}
    if optimizer is not None:
        states = _empty_states(learner, kept)
        wanted |= _named_states(learner, states)
    try:
        dcp.load(wanted, storage_reader=reader, no_dist=context.world_size == 1)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise DataError(f"{folder}: not the tensors of this configuration ({reason})") from None
    for parameter, state in states.items():
        assert optimizer is not None
        optimizer.state[parameter] = state


def _empty_states(learner: Learner, metadata: Mapping[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
    """An empty tensor for every tensor of the optimizer that is stored."""
    states: dict[Tensor, dict[str, Tensor]] = {}
    for name, parameter in learner.named_parameters():
        prefix = f"{_OPTIMIZER}{name}."
        for full in (n for n in metadata if n.startswith(prefix)):
            key, kind = full.removeprefix(prefix), metadata[full]
            if "." in key:
                continue  # of a parameter whose name starts with this one's
            alike = kind.size == parameter.shape
            place = (
                torch.empty_like(parameter, requires_grad=False)
                if alike
                # Step counts; fused optimizers need them on the parameter's device.
                else torch.empty(kind.size, dtype=kind.properties.dtype, device=parameter.device)
            )
            states.setdefault(parameter, {})[key] = place
    return states


def _named_states(
    learner: Learner, states: Mapping[Tensor, Mapping[str, Any]]
) -> dict[str, Tensor]:
    return {
        f"{_OPTIMIZER}{name}.{key}": value
        for name, parameter in learner.named_parameters()
        for key, value in states.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.clone()
    return tensor.to("cpu", non_blocking=not isinstance(tensor, DTensor))
