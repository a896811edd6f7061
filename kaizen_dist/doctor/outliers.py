"""Which ranks are out of line, and which links are slow: numbers in, findings out."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from kaizen_dist.distributed.network import ClockOffset, Link
from kaizen_dist.doctor.finding import Finding, State, graded
from kaizen_dist.doctor.ranks import RankFacts

GROUP = "ranks"
SLOW = 1.5
"""A rank that takes so many times the median's time is slow."""
_SKEW_SECONDS = 0.5
_NAMED = 8
"""At most so many ranks are named in one line."""


def judge_ranks(ranks: Sequence[RankFacts], clocks: Sequence[ClockOffset]) -> Iterator[Finding]:
    """What differs between ranks, and who is slow."""
    yield _census(ranks)
    yield _same(ranks, "package version", lambda rank: rank.package, "install one on every node")
    yield _same(ranks, "torch version", lambda rank: rank.torch, "install one on every node")
    cure = "the slowest kind sets the pace: --constraint, or another partition"
    yield _same(ranks, "kind of device", lambda rank: rank.device, cure, "warn")
    if any(rank.stream_sha256 or rank.stream_problem for rank in ranks):
        yield _stream(ranks)
    cure = "it sets the pace for all: look for other programs, heat, a power limit; or leave it out"
    yield _speeds("compute", ranks, lambda rank: rank.flops, _gflops, cure)
    cure = "its disk or mount is slow: leave it out, or write runs elsewhere"
    yield _speeds("disk", ranks, lambda rank: rank.disk_bytes_per_second, _mbytes, cure)
    yield _clocks(ranks, clocks)


def judge_links(links: Sequence[Link], hosts: int) -> Iterator[Finding]:
    """What is to be said of the all-reduces over ranks on so many machines."""
    for link in links:
        tried = {b.bytes: b.bus_bytes_per_second for b in link.bandwidths}
        shown = [
            f"{size >> 20} MiB {f'{speed / 1e9:.2f} GB/s' if speed else 'not tried'}"
            for size, speed in tried.items()
        ]
        value = f"{1e6 * link.latency_seconds:,.0f} us, bus {', '.join(shown)}"
        name, facts = f"all-reduce, {link.backend}", {"latency_seconds": link.latency_seconds}
        best = max((speed for speed in tried.values() if speed), default=0.0)
        low = _least(link.backend, hosts)
        cure = f"below {low / 1e9:g} GB/s: {_link_cure(link.backend, hosts)}"
        yield Finding(GROUP, name, graded(best, warn=low, fail=0), value, cure, facts)


def slow_ranks(speeds: Sequence[float | None]) -> list[int]:
    """The places of those slower than the median by `SLOW`; None is not judged."""
    known = [speed for speed in speeds if speed is not None]
    if not known:
        return []
    least = statistics.median(known) / SLOW
    return [place for place, speed in enumerate(speeds) if speed is not None and speed < least]


def _census(ranks: Sequence[RankFacts]) -> Finding:
    hosts = Counter(rank.host for rank in ranks)
    each = sorted(set(hosts.values()))
    value = f"{len(ranks)} on {len(hosts)} machine{'s' if len(hosts) > 1 else ''}"
    facts = {"ranks": len(ranks), "hosts": dict(hosts)}
    if len(ranks) == 1:
        cure = "there is nothing to compare: --procs N, torchrun or srun start several"
        return Finding(GROUP, "ranks", "warn", value, cure, facts)
    if len(each) > 1:
        cure = "start as many on each: lanes are shared evenly, and the fullest sets the pace"
        return Finding(GROUP, "ranks", "warn", f"{value}, {each} of them", cure, facts)
    return Finding(GROUP, "ranks", "ok", value, facts=facts)


def _same(
    ranks: Sequence[RankFacts],
    name: str,
    of: Callable[[RankFacts], str],
    cure: str,
    state: State = "fail",
) -> Finding:
    kinds = Counter(of(rank) for rank in ranks)
    if len(kinds) == 1:
        return Finding(GROUP, name, "ok", f"{next(iter(kinds))} on all")
    usual = kinds.most_common(1)[0][0]
    others = [rank for rank in ranks if of(rank) != usual]
    told = "; ".join(f"{_named(rank)} {of(rank)}" for rank in others[:_NAMED])
    value = f"{usual}, but {told}{_more(others)}"
    return Finding(GROUP, name, state, value, cure)


def _stream(ranks: Sequence[RankFacts]) -> Finding:
    blind = [rank for rank in ranks if rank.stream_problem]
    if blind:
        told = "; ".join(f"{_named(rank)} {rank.stream_problem}" for rank in blind[:_NAMED])
        cure = "put the stream where every node sees it, or give a URL"
        return Finding(GROUP, "stream", "fail", f"{told}{_more(blind)}", cure)
    cure = "the nodes have different copies: `kaizen-dist verify` on each, and copy anew"
    short = [f"{rank.stream_sha256}"[:12] for rank in ranks]
    shown = {rank.rank: digest for rank, digest in zip(ranks, short, strict=True)}
    return _same(ranks, "stream", lambda rank: shown[rank.rank], cure)


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
    value = f"median {shown(median)}, least {shown(min(known))}"
    slow = [ranks[place] for place in slow_ranks(speeds)]
    facts = {"median": median, "slow": [{"rank": r.rank, "host": r.host} for r in slow]}
    if slow:
        told = "; ".join(f"{_named(r)} {shown(of(r) or 0.0)}" for r in slow[:_NAMED])
        value = f"median {shown(median)}, slow: {told}{_more(slow)}"
        return Finding(GROUP, name, "warn", value, cure, facts)
    return Finding(GROUP, name, "ok", value, facts=facts)


def _clocks(ranks: Sequence[RankFacts], clocks: Sequence[ClockOffset]) -> Finding:
    furthest = max(range(len(clocks)), key=lambda r: abs(clocks[r].ahead_seconds))
    clock = clocks[furthest]
    value = (
        f"{1e3 * clock.ahead_seconds:+.2f} ms on {_named(ranks[furthest])} at most, "
        f"known to ±{1e3 * clock.accuracy_seconds:.2f} ms"
    )
    facts = {"ahead_seconds": clock.ahead_seconds, "accuracy_seconds": clock.accuracy_seconds}
    if abs(clock.ahead_seconds) - clock.accuracy_seconds > _SKEW_SECONDS:
        cure = "times of files and logs mislead: start chrony or ntpd on that node"
        return Finding(GROUP, "clocks", "warn", value, cure, facts)
    return Finding(GROUP, "clocks", "ok", value, facts=facts)


def _least(backend: str, hosts: int) -> float:
    """Bytes a second below which something is mostly wrong: half of a 1 Gb/s line for gloo,
    of 10 Gb/s for NCCL between machines, of PCIe 3 x16 within one."""
    if backend == "gloo":
        return 0.06e9
    return 0.6e9 if hosts > 1 else 6e9


def _link_cure(backend: str, hosts: int) -> str:
    if backend == "gloo":
        return "name the fast network with GLOO_SOCKET_IFNAME" if hosts > 1 else "see the load"
    if hosts > 1:
        return (
            "NCCL_DEBUG=INFO says which network is taken; NCCL_SOCKET_IFNAME, NCCL_IB_HCA name it"
        )
    return "nvidia-smi topo -m shows how the GPUs are joined; NCCL_DEBUG=INFO what is used"


def _named(rank: RankFacts) -> str:
    return f"{rank.host} (rank {rank.rank})"


def _more(ranks: Sequence[RankFacts]) -> str:
    return f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""


def _gflops(value: float) -> str:
    return f"{value / 1e12:,.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:,.1f} GFLOP/s"


def _mbytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB/s"
