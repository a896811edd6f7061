"""The checks: one table of them, each with a time-out, for this machine or among ranks.

A driver, disk or daemon that hangs is a finding too. A check runs on a thread of its own, since
nothing else gives up a system call that never returns; such a thread ends with the process.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import PeerError
from kaizen_dist.common.threads import within
from kaizen_dist.doctor.report import DoctorReport, Finding, join_hosts, worst

if TYPE_CHECKING:
    from kaizen_dist.distributed.context import RankContext
    from kaizen_dist.doctor.cluster import NodesRequest

_MEET_SECONDS = 180.0
"""For the ranks to find each other; before that, machines may check themselves for as long."""
_SILENCE_SECONDS = 30.0


class Check(NamedTuple):
    """A group of findings, the function that makes them, and its time-out."""

    group: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 20.0
    cure: str = "run it again; if it stays, see whether the machine's disks and drivers answer"
    """The cure where there is no answer in time."""


def run_checks(checks: Iterable[Check], say: Callable[[str], None]) -> list[Finding]:
    """The findings of all checks; `say` is told of each before it begins.

    The findings of a check before it failed or ran out of time are kept.
    """
    findings: list[Finding] = []
    for check in checks:
        say(f"looking at {check.group}")
        found: list[Finding] = []
        problem = _problem(check, found)
        findings += [*found, *([problem] if problem else [])]
    return findings


def _problem(check: Check, found: list[Finding]) -> Finding | None:
    """Make a check, which fills `found`; why it did not come to its end."""

    def look() -> None:
        for finding in check.look():
            found.append(finding)

    try:
        within(check.seconds, look)
    except TimeoutError as error:
        return Finding(check.group, "time", "fail", str(error), check.cure)
    except Exception as error:  # any fault of a machine is a finding
        told = f"{type(error).__name__}: {error}"
        return Finding(check.group, "check", "fail", told, check.cure)
    return None


def examine_here(out: Path, stream: str | None, local_ranks: int, ranks: int) -> list[Finding]:
    """The findings of this machine, for `local_ranks` ranks on it and `ranks` in all."""
    table = [
        Check("versions", _in("versions"), 120, "a package does not load: install anew"),
        Check("devices", _in("devices", local_ranks), 60),
        Check(
            "limits",
            _in("limits", out, local_ranks, ranks),
            cure=f"the disk or mount of {out} does not answer: name another with --out",
        ),
    ]
    if stream is not None:
        cure = "see whether the disk, mount or server it lies on answers"
        table.append(Check("storage", _in("storage", stream), 60, cure))
    return run_checks(table, _say)


def _in(module: str, *arguments: object) -> Callable[[], Iterable[Finding]]:
    """The function of a module of that name, which is loaded within its check's time only."""

    def look() -> Iterable[Finding]:
        found: Iterable[Finding] = getattr(import_module(f"kaizen_dist.doctor.{module}"), module)(
            *arguments
        )
        return found

    return look


def examine(
    out: Path, stream: str | None, slurm: bool, asked: "NodesRequest | None"
) -> DoctorReport:
    """This machine; with `slurm` its cluster as well, and the nodes that are asked for."""
    here = [] if asked else examine_here(out, stream, local_ranks=1, ranks=1)
    if not slurm:
        return DoctorReport(here)
    from kaizen_dist.doctor import cluster

    cure = "see whether Slurm's controller answers: scontrol ping"
    found = run_checks([Check(cluster.GROUP, cluster.settings, 180, cure)], _say)
    if asked is None or worst(found) == "fail":
        return DoctorReport([*here, *found])
    _say(f"asking for {asked.nodes} nodes and looking at them")
    there = cluster.examine_nodes(asked, out, stream)
    return DoctorReport([*found, *there.findings], there.ranks, there.links)


def examine_ranks(out: Path, stream: str | None) -> DoctorReport | None:
    """The findings of all machines and among their ranks; None on all ranks but the first.

    Ranks that cannot meet, or lose one of them, are a finding beside those of this machine.
    """
    from kaizen_dist.config.schema import ParallelConfig
    from kaizen_dist.distributed.context import local_world_size, start

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    here = examine_here(out, stream, local_world_size(), world_size) if first_here else []
    if rank == 0:
        _say(f"waiting for {world_size} ranks to meet")
    config = ParallelConfig(timeout_seconds=_MEET_SECONDS, silence_seconds=_SILENCE_SECONDS)
    try:
        with start(config, threads=0) as context:
            report = _among(context, here, out, stream)
    except (PeerError, RuntimeError) as error:  # RuntimeError: torch's own
        cure = (
            "MASTER_ADDR and MASTER_PORT must name the first node and be reachable from all: see "
            "the firewall, and whether every rank was started"
        )
        missed = Finding("ranks", "meeting", "fail", str(error).splitlines()[0], cure)
        report = DoctorReport([*here, missed])
    return report if rank == 0 else None


def _among(
    context: "RankContext", here: list[Finding], out: Path, stream: str | None
) -> DoctorReport:
    from kaizen_dist.distributed.network import measure_clocks, measure_links
    from kaizen_dist.doctor.ranks import host_name, judge_links, judge_ranks, measure_ranks

    tell: Callable[[str], None] = _say if context.main else lambda _: None
    tell("looking at every rank's speed")
    by_host = {host: found for host, found in context.exchange((host_name(), here)) if found}
    ranks = measure_ranks(context, out, stream)
    tell("looking at clocks and all-reduces")
    clocks, links = measure_clocks(context), measure_links(context)
    findings = join_hosts(by_host)
    findings += judge_ranks(ranks, clocks)
    findings += judge_links(links, len({facts.host for facts in ranks}))
    rows = [asdict(facts) | asdict(clock) for facts, clock in zip(ranks, clocks, strict=True)]
    return DoctorReport(findings, rows, [asdict(link) for link in links])


def _say(text: str) -> None:
    """Progress, on standard error."""
    PlainConsole(stderr=True).print(f"{text} ...", style="dim")
