"""Latency and bandwidth of the ranks' all-reduce, and the offsets of their clocks.

All ranks call together; the results are the same on every rank.

An all-reduce of B bytes in t seconds over n ranks has the bus bandwidth 2 (n - 1) / n * B / t: what
a ring would have to send over its slowest link, comparable to the link's own figure for every n.
That is the definition of NVIDIA's nccl-tests.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kaizen_dist.common.device_clock import synchronise
from kaizen_dist.distributed.context import RankContext

SMALL = 8
"""Bytes of the message whose time is the latency."""
LARGE = (4 << 20, 64 << 20)
_WARM_UP = 3
_SMALL_REPEATS = 50
_SECONDS = 0.5
"""Total time of the repeats of a large message."""
_LONGEST = 10.0
"""A message expected to take longer is not sent."""
_PINGS = 8


@dataclass(frozen=True)
class Bandwidth:
    """Bus bandwidth for one message size."""

    bytes: int
    bus_bytes_per_second: float | None
    """None if too slow to be measured."""


@dataclass(frozen=True)
class Link:
    """All-reduce over all ranks with one backend; the slowest rank's times."""

    backend: str
    ranks: int
    latency_seconds: float
    bandwidths: list[Bandwidth]


@dataclass(frozen=True)
class ClockOffset:
    """A rank's clock relative to that of rank 0."""

    ahead_seconds: float
    accuracy_seconds: float
    """Half of the fastest round trip: the uncertainty of `ahead_seconds`."""


def measure_links(context: RankContext, sizes: Sequence[int] = LARGE) -> list[Link]:
    """All-reduce over the group that training uses and, where that is NCCL, over gloo as well."""
    if context.world_size == 1:
        return []
    groups: list[tuple[dist.ProcessGroup | None, torch.device]] = [(None, context.device)]
    if context.device.type == "cuda":
        groups.append((context.background, torch.device("cpu")))
    return [_measure(group, device, context.world_size, sizes) for group, device in groups]


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes a second of an all-reduce of `size` bytes: 2 (n - 1) / n * size / seconds."""
    return 2 * (ranks - 1) / ranks * size / seconds


def measure_clocks(context: RankContext) -> list[ClockOffset]:
    """Every rank's clock, in rank order; each speaks with rank 0 in turn, as with an NTP server.

    A rank asks, rank 0 answers with its time, and the answer is taken to be from the middle of
    the round trip; of several, the fastest counts.
    """
    mine = ClockOffset(0.0, 0.0)
    if context.rank == 0:
        for peer in range(1, context.world_size):
            _answer(context, peer)
    else:
        mine = _ask(context)
    return context.exchange(mine)


def clock_offset(trips: Sequence[tuple[float, float, float]]) -> ClockOffset:
    """From round trips (sent, answered by rank 0's clock, received)."""
    asked, answered, heard = min(trips, key=lambda trip: trip[2] - trip[0])
    return ClockOffset((asked + heard) / 2 - answered, (heard - asked) / 2)


def _measure(
    group: dist.ProcessGroup | None, device: torch.device, ranks: int, sizes: Sequence[int]
) -> Link:
    _seconds(SMALL, group, device, _WARM_UP)
    latency = _seconds(SMALL, group, device, _SMALL_REPEATS)
    bandwidths = []
    expected = 0.0
    for size in sizes:
        if expected * size > _LONGEST:
            bandwidths.append(Bandwidth(size, None))
            continue
        once = _seconds(size, group, device, 1)
        repeats = max(2, min(20, int(_SECONDS / once)))
        seconds = _seconds(size, group, device, repeats)
        expected = seconds / size
        bandwidths.append(Bandwidth(size, bus_bandwidth(size, seconds, ranks)))
    return Link(dist.get_backend(group), ranks, latency, bandwidths)


def _seconds(
    size: int, group: dist.ProcessGroup | None, device: torch.device, repeats: int
) -> float:
    """Of one all-reduce, as the slowest rank saw it: the same number on every rank."""
    message = torch.zeros(size // 4, device=device)
    dist.all_reduce(message, group=group)
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(message, group=group)
    synchronise(device)
    slowest = torch.tensor([(time.perf_counter() - begun) / repeats], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    return float(slowest)


def _ask(context: RankContext) -> ClockOffset:
    trips = []
    answer = torch.zeros(1, dtype=torch.float64)
    for _ in range(_PINGS):
        asked = time.time()
        dist.send(answer, 0, group=context.background)
        dist.recv(answer, 0, group=context.background)
        trips.append((asked, float(answer), time.time()))
    return clock_offset(trips)


def _answer(context: RankContext, peer: int) -> None:
    question = torch.zeros(1, dtype=torch.float64)
    for _ in range(_PINGS):
        dist.recv(question, peer, group=context.background)
        now: Tensor = torch.tensor([time.time()], dtype=torch.float64)
        dist.send(now, peer, group=context.background)
