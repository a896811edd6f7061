"""Measurements of every rank, and the ranks and links that are out of line.

Ranks of one kind of machine should differ by little. `measure_ranks` gives the same list on all
ranks; `judge_ranks` and `judge_links` turn numbers into findings.
"""

import hashlib
import os
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import kaizen_dist
from kaizen_dist.common.files import existing
from kaizen_dist.common.threads import within
from kaizen_dist.doctor.report import Finding, Rule, fail_if, graded, judged, shortened, warn_if
from kaizen_dist.stream.manifest import MANIFEST
from kaizen_dist.stream.remote import is_url

if TYPE_CHECKING:
    from kaizen_dist.distributed.context import RankContext
    from kaizen_dist.distributed.network import ClockOffset, Link

GROUP = "ranks"
SLOW = 1.5
"""A rank that takes this many times the median's time is slow."""
_SKEW_SECONDS = 0.5
_NAMED = 8
"""Ranks named in one line."""
_DISK_BYTES = 32 << 20
_DISK_SECONDS = 20.0
_LINKS = {
    ("gloo", False): (0.06e9, "see the load"),
    ("gloo", True): (0.06e9, "name the fast network with GLOO_SOCKET_IFNAME"),
    ("nccl", False): (
        6e9,
        "nvidia-smi topo -m shows how the GPUs are joined; NCCL_DEBUG=INFO what is used",
    ),
    ("nccl", True): (
        0.6e9,
        "NCCL_DEBUG=INFO says which network is taken; NCCL_SOCKET_IFNAME, NCCL_IB_HCA name it",
    ),
}
"""By (backend, between machines): bytes a second below which something is mostly wrong (half of a
1 Gb/s line, of PCIe 3 x16, of 10 Gb/s), and the cure."""


@dataclass(frozen=True)
class RankFacts:
    """One rank, as it sees itself."""

    rank: int
    host: str
    package: str
    torch: str
    device: str
    flops: float
    """Operations a second of a matrix product: float32 on a CPU, bf16 on a GPU."""
    disk_bytes_per_second: float | None = None
    """Written and flushed where runs are kept; of one rank a machine, None of the others."""
    stream_sha256: str | None = None
    """Of its stream.json; None: not asked for, or not readable."""
    stream_problem: str = ""


def host_name() -> str:
    """This machine's name: the one Slurm knows it by, where it runs under Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def measure_ranks(context: "RankContext", out: Path, stream: str | None) -> list[RankFacts]:
    """The facts of all ranks, in rank order; all of them measure at the same time."""
    import torch

    from kaizen_dist.bench.machine import peak_flops

    context.barrier()
    sha256, problem = _stream_digest(stream)
    on_gpu, first_here = context.device.type == "cuda", os.environ.get("LOCAL_RANK", "0") == "0"
    mine = RankFacts(
        rank=context.rank,
        host=host_name(),
        package=kaizen_dist.__version__,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(context.device) if on_gpu else "CPU",
        flops=peak_flops(context.device, "bf16" if on_gpu else "fp32")[0],
        disk_bytes_per_second=_disk_speed(out) if first_here else None,
        stream_sha256=sha256,
        stream_problem=problem,
    )
    return context.exchange(mine)


def _disk_speed(out: Path) -> float | None:
    """Bytes a second into a file without a name, which is gone when it is closed; None: failed."""

    def write() -> float:
        content = os.urandom(_DISK_BYTES)
        with tempfile.TemporaryFile(dir=existing(out)) as file:
            begun = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return _DISK_BYTES / (time.perf_counter() - begun)

    try:
        return within(_DISK_SECONDS, write)
    except OSError:  # a TimeoutError is one too; `limits` says what is wrong with the disk
        return None


def _stream_digest(stream: str | None) -> tuple[str | None, str]:
    """(sha256 of stream.json, "") or (None, why not)."""
    if stream is None or is_url(stream):
        return None, ""
    path = Path(stream) / MANIFEST
    try:
        return hashlib.sha256(within(_DISK_SECONDS, path.read_bytes)).hexdigest(), ""
    except OSError as error:
        return None, f"{path}: {error.strerror or error}"


# ---- judging --------------------------------------------------------------------------------


def judge_ranks(ranks: Sequence[RankFacts], clocks: Sequence["ClockOffset"]) -> Iterator[Finding]:
    """Differences between ranks, and slow ranks."""
    yield _census(ranks)
    yield _same(ranks, "package version", lambda rank: rank.package, "install one on every node")
    yield _same(ranks, "torch version", lambda rank: rank.torch, "install one on every node")
    cure = "the slowest kind sets the pace: --constraint, or another partition"
    yield _same(ranks, "kind of device", lambda rank: rank.device, cure, warn_if)
    if any(rank.stream_sha256 or rank.stream_problem for rank in ranks):
        yield _stream(ranks)
    cure = "it sets the pace for all: look for other programs, heat, a power limit; or leave it out"
    yield _speeds("compute", ranks, lambda rank: rank.flops, _gflops, cure)
    cure = "its disk or mount is slow: leave it out, or write runs elsewhere"
    yield _speeds("disk", ranks, lambda r: r.disk_bytes_per_second, _mbytes, cure)
    yield _clocks(ranks, clocks)


def judge_links(links: Sequence["Link"], hosts: int) -> Iterator[Finding]:
    """The all-reduces over ranks on `hosts` machines."""
    for link in links:
        speeds = [bandwidth.bus_bytes_per_second for bandwidth in link.bandwidths]
        shown = [
            f"{b.bytes >> 20} MiB {f'{speed / 1e9:.2f} GB/s' if speed else 'not tried'}"
            for b, speed in zip(link.bandwidths, speeds, strict=True)
        ]
        value = f"{1e6 * link.latency_seconds:,.0f} us, bus {', '.join(shown)}"
        kind = "gloo" if link.backend == "gloo" else "nccl"
        least, cure = _LINKS[kind, hosts > 1]
        cure = f"below {least / 1e9:g} GB/s: {cure}"
        state = graded(max((speed or 0.0 for speed in speeds), default=0.0), warn=least, fail=0)
        facts = {"latency_seconds": link.latency_seconds}
        yield Finding(GROUP, f"all-reduce, {link.backend}", state, value, cure, facts)


def slow_ranks(speeds: Sequence[float | None]) -> list[int]:
    """The indices of those slower than the median by `SLOW`; None is not judged."""
    known = [speed for speed in speeds if speed is not None]
    least = statistics.median(known) / SLOW if known else 0.0
    return [place for place, speed in enumerate(speeds) if speed is not None and speed < least]


def _census(ranks: Sequence[RankFacts]) -> Finding:
    hosts = Counter(rank.host for rank in ranks)
    each = sorted(set(hosts.values()))
    value = f"{len(ranks)} on {len(hosts)} machine{'s' if len(hosts) > 1 else ''}"
    value += f", {each} of them" if len(each) > 1 else ""
    lone = "there is nothing to compare: --procs N, torchrun or srun start several"
    uneven = "start as many on each: lanes are shared evenly, and the fullest sets the pace"
    rules = warn_if(len(ranks) == 1, lone), warn_if(len(each) > 1, uneven)
    return judged(GROUP, "ranks", value, {"ranks": len(ranks), "hosts": dict(hosts)}, *rules)


def _same(
    ranks: Sequence[RankFacts],
    name: str,
    of: Callable[[RankFacts], str],
    cure: str,
    rule: Callable[[object, str], Rule] = fail_if,
) -> Finding:
    usual = Counter(map(of, ranks)).most_common(1)[0][0]
    others = [f"{_named(rank)} {of(rank)}" for rank in ranks if of(rank) != usual]
    value = f"{usual}, but {_listed(others)}" if others else f"{usual} on all"
    return judged(GROUP, name, value, {}, rule(others, cure))


def _stream(ranks: Sequence[RankFacts]) -> Finding:
    if blind := [f"{_named(rank)} {rank.stream_problem}" for rank in ranks if rank.stream_problem]:
        cure = "put the stream where every node sees it, or give a URL"
        return Finding(GROUP, "stream", "fail", _listed(blind), cure)
    cure = "the nodes have different copies: `kaizen-dist verify` on each, and copy anew"
    return _same(ranks, "stream", lambda rank: f"{rank.stream_sha256}"[:12], cure)


def _speeds(
    name: str,
    ranks: Sequence[RankFacts],
    of: Callable[[RankFacts], float | None],
    shown: Callable[[float], str],
    cure: str,
) -> Finding:
    speeds = [of(rank) for rank in ranks]
    known = [speed for speed in speeds if speed is not None]
    if not known:
        return Finding(GROUP, name, "fail", "could not be measured on any rank", "see limits: disk")
    median = statistics.median(known)
    slow = [ranks[place] for place in slow_ranks(speeds)]
    facts = {"median": median, "slow": [{"rank": r.rank, "host": r.host} for r in slow]}
    told = [f"{_named(rank)} {shown(of(rank) or 0.0)}" for rank in slow]
    rest = f"slow: {_listed(told)}" if slow else f"least {shown(min(known))}"
    return judged(GROUP, name, f"median {shown(median)}, {rest}", facts, warn_if(slow, cure))


def _clocks(ranks: Sequence[RankFacts], clocks: Sequence["ClockOffset"]) -> Finding:
    furthest = max(range(len(clocks)), key=lambda r: abs(clocks[r].ahead_seconds))
    ahead, accuracy = clocks[furthest].ahead_seconds, clocks[furthest].accuracy_seconds
    value = f"{1e3 * ahead:+.2f} ms on {_named(ranks[furthest])} at most, "
    value += f"known to ±{1e3 * accuracy:.2f} ms"
    cure = "times of files and logs mislead: start chrony or ntpd on that node"
    rule = warn_if(abs(ahead) - accuracy > _SKEW_SECONDS, cure)
    facts = {"ahead_seconds": ahead, "accuracy_seconds": accuracy}
    return judged(GROUP, "clocks", value, facts, rule)


def _named(rank: RankFacts) -> str:
    return f"{rank.host} (rank {rank.rank})"


def _listed(told: list[str]) -> str:
    return shortened(told, _NAMED, "; ")


def _gflops(value: float) -> str:
    return f"{value / 1e12:,.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:,.1f} GFLOP/s"


def _mbytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB/s"
