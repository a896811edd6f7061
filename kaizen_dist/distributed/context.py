"""This process and its peers: rank, device, threads, and the collectives the house uses.

A run is started alone, by `--procs N`, by torchrun or by srun; all but the first describe the
ranks in the same environment variables (srun with the help of `slurm_env.py`). `start` joins the
process group and hands out a `RankContext`, which everything else takes as given: nothing outside
`engine` asks the environment or calls `torch.distributed`.
"""

import datetime
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed import collectives, rendezvous, slurm_env
from kaizen_dist.distributed.authentication import Seal
from kaizen_dist.distributed.gpu_watchdog import Pace
from kaizen_dist.distributed.heartbeat import Heartbeat
from kaizen_dist.distributed.malloc import keep_freed_memory

T = TypeVar("T")


@dataclass(frozen=True)
class RankContext:
    """One rank. Alone, every collective is the identity."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    background: dist.ProcessGroup | None = None
    """All ranks over gloo, for what a thread does while training goes on; None alone."""
    control: dist.ProcessGroup | None = None
    """The same for barriers and for small notices between steps, of the main thread."""

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
        """What every rank brings, in rank order: plain data of any size, for a background
        thread. (Between the ranks of one run; torch sends it as a pickle.)"""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.background)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have come here, the host too: what they have done is done."""
        # Not over NCCL, which would only have the GPU wait.
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
    """`train.threads`, or the cores that Slurm gave this rank, or this machine's cores shared by
    its ranks."""
    cores = len(os.sched_getaffinity(0))
    own = slurm_env.cores_of_task(os.environ)
    return asked or (min(cores, own) if own else max(1, cores // local_world_size()))


@contextmanager
def start(config: ParallelConfig, threads: int) -> Iterator[RankContext]:
    """Join the peers that the environment describes, for as long as the context lasts.

    Raises:
        UsageError: if the environment is incomplete or makes no sense.
        PeerError: if the ranks do not find each other within `parallel.timeout_seconds`, or one
            of them ends or falls silent later.
    """
    slurm_env.describe_as_torchrun(os.environ)
    torch.set_num_threads(threads_of_rank(threads))
    if config.keep_memory:
        keep_freed_memory()
    # Newer versions of torch give it another name, which older ones do not know.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    seat, seal = rendezvous.seat_of(os.environ), Seal(os.environ)
    if seat.world_size == 1:
        yield RankContext(device=_take_device(seat.local_rank))
        return
    store = rendezvous.meet(seat, seal, config.timeout_seconds)
    # A connection of its own: a collective that waits must not keep the heartbeat waiting.
    beats = rendezvous.join(seat, config.timeout_seconds)
    pace = Pace(seat.rank, config.timeout_seconds)
    with Heartbeat(beats, seat, seal, config.silence_seconds, pace.stuck):
        device = _take_device(seat.local_rank)
        pace.watch(device)
        backend = collectives.backend(store, seat, seal, device)
        context = _joined(store, seat, device, backend, config.timeout_seconds)
        context.barrier()
        yield context
        context.barrier()
    dist.destroy_process_group()


def _joined(
    store: Store, seat: rendezvous.Seat, device: torch.device, backend: str, seconds: float
) -> RankContext:
    """This rank with its process groups."""
    timeout = datetime.timedelta(seconds=seconds)
    # Its watchdog would abort the process before the heartbeat has named the rank that is gone.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=seat.rank,
        world_size=seat.world_size,
        timeout=timeout,
        device_id=device if backend == "nccl" else None,
    )
    background, control = (_gloo_group(timeout) for _ in range(2))
    return RankContext(seat.rank, seat.world_size, device, background, control)


def _take_device(local_rank: int) -> torch.device:
    device = device_of(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_of(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU where there is none.

    A launcher may show each rank all GPUs of its node, or (srun --gpus-per-task) its own alone.
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


def _gloo_group(timeout: datetime.timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    return group
