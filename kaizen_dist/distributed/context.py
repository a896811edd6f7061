"""This process and its peers: rank, device, threads, and the collectives of this package.

A run is started alone, by `--procs N`, by torchrun or by srun; all but the first describe the
ranks in the same environment variables (srun with the help of `slurm_env.py`). `start` joins the
process group and yields a `RankContext`: nothing outside `distributed` and `engine` reads the
environment or calls `torch.distributed`.
"""

import datetime
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore

from kaizen_dist.common.errors import PeerError, UsageError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed import slurm_env
from kaizen_dist.distributed.gpu_watchdog import GpuWatchdog
from kaizen_dist.distributed.heartbeat import Heartbeat
from kaizen_dist.distributed.malloc import keep_freed_memory
from kaizen_dist.distributed.rendezvous import (
    LaunchInfo,
    connect,
    launch_info,
    name_ranks,
    rendezvous,
)
from kaizen_dist.distributed.store import SignedStore

T = TypeVar("T")

_BACKEND = "backend"
"""Key of rank 0's choice."""
_REFUSED = "refused: "


@dataclass(frozen=True)
class RankContext:
    """One rank. With a single rank every collective is the identity."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    background: dist.ProcessGroup | None = None
    """All ranks over gloo, for a thread beside the training; None with a single rank."""
    control: dist.ProcessGroup | None = None
    """All ranks over gloo, for barriers and small messages of the main thread between steps."""

    @property
    def main(self) -> bool:
        """Whether this rank writes what all ranks share."""
        return self.rank == 0

    def all_gather(self, local: Tensor) -> Tensor:
        """`gather`: every rank's [n, ...] as one [world n, ...], in rank order, differentiable.

        The gradient of the result, summed over all ranks, flows back to the own part.
        """
        return local if self.world_size == 1 else _Gather.apply(local, self.rank)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of a tensor that needs no gradient."""
        return self.sum(values) / self.world_size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor that needs no gradient."""
        total = values.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def exchange(self, value: T) -> list[T]:
        """Every rank's value, in rank order: plain data of any size. The main thread and a
        background thread may call it at the same time. (Between the ranks of one run; torch sends
        it as a pickle.)"""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        main = threading.current_thread() is threading.main_thread()
        dist.all_gather_object(values, value, group=self.control if main else self.background)
        return values

    def barrier(self) -> None:
        """Block the host until all ranks have called it."""
        # Not over NCCL, where only the GPU would wait.
        if self.world_size > 1:
            dist.barrier(group=self.control)


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension whose backward is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int) -> Tensor:
        ctx.part = slice(rank * len(local), (rank + 1) * len(local))
        whole = local.new_empty((dist.get_world_size() * len(local), *local.shape[1:]))
        dist.all_gather_into_tensor(whole, local.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.part], None


def local_world_size() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def threads_of_rank(asked: int) -> int:
    """`train.threads` if set, or the cores that Slurm gave this rank, or this machine's cores
    divided by its ranks."""
    cores = len(os.sched_getaffinity(0))
    own = slurm_env.cores_of_task(os.environ)
    return asked or (min(cores, own) if own else max(1, cores // local_world_size()))


@contextmanager
def start(config: ParallelConfig, threads: int) -> Iterator[RankContext]:
    """Join the ranks that the environment describes, while the context lasts.

    Raises:
        UsageError: if the environment is incomplete or invalid.
        PeerError: if the ranks do not find each other within `parallel.timeout_seconds`, or one
            of them ends or falls silent later.
    """
    slurm_env.describe_as_torchrun(os.environ)
    torch.set_num_threads(threads_of_rank(threads))
    if config.keep_memory:
        keep_freed_memory()
    # Newer versions of torch rename it; older ones do not have the new name.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    info = launch_info(os.environ)
    if info.world_size == 1:
        yield RankContext(device=_take_device(info.local_rank))
        return
    store = rendezvous(info, config.timeout_seconds)
    # A second connection: a collective that waits must not block the heartbeat.
    beats = connect(info, config.timeout_seconds)
    watchdog = GpuWatchdog(info.rank, config.timeout_seconds)
    with Heartbeat(beats, info, config.silence_seconds, watchdog.stuck):
        device = _take_device(info.local_rank)
        watchdog.watch(device)
        backend = _agree_on_backend(store, info, device)
        context = _joined(store, info, device, backend, config.timeout_seconds)
        context.barrier()
        yield context
        context.barrier()
    dist.destroy_process_group()


def device_of(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU if there is none.

    A launcher may show each rank all GPUs of its node, or (srun --gpus-per-task) its own only.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if 1 < gpus <= local_rank:
        raise UsageError(
            f"rank {local_rank} of this node has no GPU of its own: {gpus} are visible; start "
            "one rank a GPU"
        )
    return torch.device("cuda", local_rank if gpus > 1 else 0)


def choose_backend(gpus: Sequence[str]) -> str:
    """`nccl` if every rank has a GPU of its own, else `gloo`, or a refusal.

    Ranks that share a GPU (`--procs 2` on a machine with one) use gloo, slower and as correct.
    `gpus` are the ranks' GPU UUIDs, "" for none.
    """
    without = [rank for rank, gpu in enumerate(gpus) if not gpu]
    if without and len(without) < len(gpus):
        return (
            f"{_REFUSED}no GPU is seen by {name_ranks(without)} of {len(gpus)}, but by the others: "
            "give every rank one (Slurm: --gpus-per-task), or hide them all with "
            "CUDA_VISIBLE_DEVICES="
        )
    return "nccl" if gpus[0] and len(set(gpus)) == len(gpus) else "gloo"


def _agree_on_backend(store: SignedStore, info: LaunchInfo, device: torch.device) -> str:
    """Rank 0's choice; all ranks call together.

    Raises:
        UsageError: on all ranks, if only some see a GPU.
        PeerError: if the choice is not signed by a rank.
    """
    keys = [f"gpu/{rank}" for rank in range(info.world_size)]
    store.set(keys[info.rank], _gpu_uuid(device))
    if info.rank == 0:
        store.raw.wait(keys)
        store.set(_BACKEND, choose_backend([gpu or "" for gpu in store.get_all(keys)]))
    store.raw.wait([_BACKEND])
    choice = store.get(_BACKEND)
    if choice is None:
        raise PeerError("the choice of the collectives' backend in the ranks' store is not signed")
    if choice.startswith(_REFUSED):
        raise UsageError(choice.removeprefix(_REFUSED))
    return choice


def _gpu_uuid(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)


def _joined(
    store: SignedStore, info: LaunchInfo, device: torch.device, backend: str, seconds: float
) -> RankContext:
    """This rank with its process groups."""
    timeout = datetime.timedelta(seconds=seconds)
    # NCCL's watchdog would abort the process before the heartbeat has named the rank that is gone.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store.raw),
        rank=info.rank,
        world_size=info.world_size,
        timeout=timeout,
        device_id=device if backend == "nccl" else None,
    )
    background, control = (_gloo_group(timeout) for _ in range(2))
    return RankContext(info.rank, info.world_size, device, background, control)


def _gloo_group(timeout: datetime.timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    return group


def _take_device(local_rank: int) -> torch.device:
    device = device_of(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
