"""Which checks are made: of this machine alone, or of every machine and among all ranks."""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import PeerError
from kaizen_dist.doctor.check import Check, run_checks
from kaizen_dist.doctor.finding import Finding, worst
from kaizen_dist.doctor.report import Report

if TYPE_CHECKING:
    from kaizen_dist.distributed.context import RankContext
    from kaizen_dist.doctor.nodes import Asked

_MEET_SECONDS = 180.0
"""For the ranks to find each other; machines may look at themselves for so long before."""
_SILENCE_SECONDS = 30.0


def examine_here(out: Path, stream: str | None, local_ranks: int, ranks: int) -> list[Finding]:
    """The findings of this machine, for so many ranks on it and in all."""
    from kaizen_dist.doctor import devices, limits, versions

    checks = [
        Check(versions.GROUP, versions.versions, 120, "a package does not load: install anew"),
        Check(devices.GROUP, lambda: devices.devices(local_ranks), 60),
        Check(
            limits.GROUP,
            lambda: limits.limits(out, local_ranks, ranks),
            cure=f"the disk or mount of {out} does not answer: name another with --out",
        ),
    ]
    if stream is not None:
        checks.append(_storage(stream))
    return run_checks(checks, _say)


def examine(out: Path, stream: str | None, slurm: bool, asked: "Asked | None") -> Report:
    """This machine; with `slurm` its cluster as well, and the nodes that are asked for."""
    if not slurm:
        return Report(examine_here(out, stream, local_ranks=1, ranks=1))
    from kaizen_dist.doctor import cluster
    from kaizen_dist.doctor.nodes import examine_nodes

    here = [] if asked else examine_here(out, stream, local_ranks=1, ranks=1)
    cure = "see whether Slurm's controller answers: scontrol ping"
    found = run_checks([Check(cluster.GROUP, cluster.slurm, 180, cure)], _say)
    if asked is None or worst(found) == "fail":
        return Report([*here, *found])
    _say(f"asking for {asked.nodes} nodes and looking at them")
    there = examine_nodes(asked, out, stream)
    return Report([*found, *there.findings], there.ranks, there.links)


def examine_ranks(out: Path, stream: str | None) -> Report | None:
    """The findings of all machines and among their ranks; None on all ranks but the first.

    Ranks that cannot meet, or lose one of them, are a finding beside those of this machine.
    """
    from kaizen_dist.config.schema import ParallelConfig
    from kaizen_dist.distributed import context as peers

    rank, world_size = _told("RANK", 0), _told("WORLD_SIZE", 1)
    first_here = _told("LOCAL_RANK", 0) == 0
    here = examine_here(out, stream, peers.local_world_size(), world_size) if first_here else []
    if rank == 0:
        _say(f"waiting for {world_size} ranks to meet")
    config = ParallelConfig(timeout_seconds=_MEET_SECONDS, silence_seconds=_SILENCE_SECONDS)
    try:
        with peers.start(config, threads=0) as context:
            report = _among(context, here, out, stream)
    except (PeerError, RuntimeError) as error:  # RuntimeError: torch's own
        return Report([*here, _not_met(error)]) if rank == 0 else None
    return report if rank == 0 else None


def _among(context: "RankContext", here: list[Finding], out: Path, stream: str | None) -> Report:
    from kaizen_dist.distributed.network import measure_clocks, measure_links
    from kaizen_dist.doctor.hosts import join_hosts
    from kaizen_dist.doctor.outliers import judge_links, judge_ranks
    from kaizen_dist.doctor.ranks import host_name, measure_ranks

    tell: Callable[[str], None] = _say if context.main else lambda _: None
    tell("looking at every rank's speed")
    told = context.exchange((host_name(), here))
    ranks = measure_ranks(context, out, stream)
    tell("looking at clocks and all-reduces")
    clocks = measure_clocks(context)
    links = measure_links(context)
    by_host = {host: findings for host, findings in told if findings}
    findings = join_hosts(by_host)
    findings += judge_ranks(ranks, clocks)
    findings += judge_links(links, len({facts.host for facts in ranks}))
    rows = [asdict(facts) | asdict(clock) for facts, clock in zip(ranks, clocks, strict=True)]
    return Report(findings, rows, [asdict(link) for link in links])


def _not_met(error: Exception) -> Finding:
    cure = (
        "MASTER_ADDR and MASTER_PORT must name the first node and be reachable from all: see the "
        "firewall, and whether every rank was started"
    )
    return Finding("ranks", "meeting", "fail", str(error).splitlines()[0], cure)


def _told(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _storage(stream: str) -> Check:
    def look() -> Iterable[Finding]:
        from kaizen_dist.doctor.storage import storage

        return storage(stream)

    cure = "see whether the disk, mount or server it lies on answers"
    return Check("storage", look, 60, cure)


def _say(text: str) -> None:
    """What is being looked at, for who waits."""
    PlainConsole(stderr=True).print(f"{text} ...", style="dim")
