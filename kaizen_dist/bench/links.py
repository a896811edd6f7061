"""How fast the ranks there are can talk: what `bench.model` wants to know of a network.

All ranks together call `measured`; every rank gets the same answer.
"""

import statistics
import time

import torch
import torch.distributed as dist

from kaizen_dist.engine.process import Process

SMALL, LARGE = 1024, 32 * 1024**2
"""Floats of an all-reduce whose time is latency, and of one whose time is bandwidth."""


def measured(process: Process, repeats: int = 5) -> tuple[float, float]:
    """(bytes a second that a rank sends while it receives as much, seconds of one hop)."""
    if process.world_size == 1:
        raise ValueError("one rank alone has no link")
    small, large = (_seconds(process, count, repeats) for count in (SMALL, LARGE))
    ranks = process.world_size
    hops = 2 * (ranks - 1).bit_length()
    moved = 2 * (ranks - 1) / ranks * 4 * LARGE
    return moved / max(large - small, 1e-9), small / hops


def _seconds(process: Process, count: int, repeats: int) -> float:
    """The median time of an all-reduce of `count` floats, of the slowest rank."""
    values = torch.ones(count, device=process.device)
    taken = []
    for _ in range(repeats + 1):
        process.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        if values.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return max(process.exchange(statistics.median(taken[1:])))
