"""Over what the ranks' tensors travel: NCCL between GPUs, gloo between CPUs.

NCCL wants a GPU for each rank. Ranks that share one (`--procs 2` on a machine with a single GPU)
talk over gloo, slower and just as right. All ranks have to choose the same, so rank 0 does.
"""

from collections.abc import Sequence

import torch
from torch.distributed import Store

from kaizen_dist.common.errors import PeerError, UsageError
from kaizen_dist.distributed.authentication import Seal
from kaizen_dist.distributed.rendezvous import Seat, name_ranks

_CHOICE = "backend"
_REFUSED = "refused: "


def backend(store: Store, seat: Seat, seal: Seal, device: torch.device) -> str:
    """`nccl` or `gloo`, the same on all ranks, which call together.

    Raises:
        UsageError: on all ranks, if some see a GPU and others do not.
        PeerError: if somebody else has answered.
    """
    key = f"gpu/{seat.rank}"
    store.set(key, seal.close(key, _uuid(device)))
    if seat.rank == 0:
        keys = [f"gpu/{rank}" for rank in range(seat.world_size)]
        store.wait(keys)
        gpus = [seal.open(*pair) or "" for pair in zip(keys, store.multi_get(keys), strict=True)]
        store.set(_CHOICE, seal.close(_CHOICE, choose(gpus)))
    choice = seal.open(_CHOICE, store.get(_CHOICE))
    if choice is None:
        raise PeerError("what the ranks' store says of their collectives is not from rank 0")
    if choice.startswith(_REFUSED):
        raise UsageError(choice.removeprefix(_REFUSED))
    return choice


def choose(gpus: Sequence[str]) -> str:
    """From every rank's GPU ("" = it has none): a backend, or why there is none."""
    without = [rank for rank, gpu in enumerate(gpus) if not gpu]
    if without and len(without) < len(gpus):
        return (
            f"{_REFUSED}no GPU is seen by {name_ranks(without)} of {len(gpus)}, but by the others: "
            "give every rank one (Slurm: --gpus-per-task), or hide them all with "
            "CUDA_VISIBLE_DEVICES="
        )
    return "nccl" if gpus[0] and len(set(gpus)) == len(gpus) else "gloo"


def _uuid(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)
