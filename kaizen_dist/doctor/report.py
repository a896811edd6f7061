"""Findings, and the report of them: a table for a terminal of 80 columns, or plain data."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

State: TypeAlias = Literal["ok", "warn", "fail"]
STATES: tuple[State, ...] = ("ok", "warn", "fail")
"""With `warn` a run works, but slowly or not for long; with `fail` it does not work."""
_STYLES: dict[State, str] = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
_HOSTS = 4
"""Machines named beside a finding."""
_VALUES = 3
"""Values shown where machines differ and all are fine."""


@dataclass(frozen=True)
class Finding:
    """Result of one check. `value` is for people, with units; `facts` the same as plain data."""

    group: str
    name: str
    state: State
    value: str
    cure: str = ""
    """The remedy; dropped where the state is ok."""
    facts: dict[str, Any] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    """The machines it holds for, where several were checked and they differ."""

    def __post_init__(self) -> None:
        if self.state == "ok":
            object.__setattr__(self, "cure", "")


Rule: TypeAlias = tuple[object, State, str]
"""(whether it applies, state, cure)"""


def warn_if(applies: object, cure: str) -> Rule:
    """A rule of state `warn`."""
    return applies, "warn", cure


def fail_if(applies: object, cure: str) -> Rule:
    """A rule of state `fail`."""
    return applies, "fail", cure


def judged(group: str, name: str, value: str, facts: dict[str, Any], *rules: Rule) -> Finding:
    """The finding of the first rule that applies; ok where none does."""
    found: tuple[State, str] = ("ok", "")
    for applies, state, cure in reversed(rules):
        found = (state, cure) if applies else found
    return Finding(group, name, found[0], value, found[1], facts)


def graded(amount: float, *, warn: float, fail: float) -> State:
    """The state of a quantity that should be large: below `warn`, below `fail`."""
    return "fail" if amount < fail else "warn" if amount < warn else "ok"


def worst(findings: Iterable[Finding]) -> State:
    """The worst state among findings; `ok` where there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default="ok")


def gigabytes(count: float) -> str:
    """Bytes in words: 1_500_000_000 -> "1.5 GB"; below a gigabyte in MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def shortened(names: list[str], limit: int, separator: str = ", ") -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more


def join_hosts(by_host: Mapping[str, list[Finding]]) -> list[Finding]:
    """The findings of several machines as one list, in the order of the first machine's.

    Findings that all machines share appear once; where they differ, each variant appears with the
    machines it holds for. Where all is fine, the first few values stand for all.
    """
    if len(by_host) == 1:
        return next(iter(by_host.values()))
    groups: dict[tuple[str, str], dict[str, Finding]] = {}
    for host, findings in by_host.items():
        for finding in findings:
            groups.setdefault((finding.group, finding.name), {})[host] = finding
    joined = []
    for of_host in groups.values():
        variants: dict[object, list[str]] = {}
        for host, f in sorted(of_host.items(), key=lambda item: item[1].state != "ok"):
            key = "ok" if f.state == "ok" else (f.state, f.value, f.cure)
            variants.setdefault(key, []).append(host)
        for hosts in variants.values():
            first, shown = of_host[hosts[0]], hosts if len(hosts) < len(by_host) else []
            values = list(dict.fromkeys(of_host[host].value for host in hosts))
            more = f"; and {len(values) - _VALUES} other values" if len(values) > _VALUES else ""
            joined.append(replace(first, value="; ".join(values[:_VALUES]) + more, hosts=shown))
    return joined


@dataclass(frozen=True)
class DoctorReport:
    """Findings, and measurements among ranks, where there were any."""

    findings: list[Finding]
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """One a rank, in rank order: host, device, flops, disk, clock."""
    links: list[dict[str, Any]] = field(default_factory=list)
    """One a backend: latency and bus bandwidths of an all-reduce."""

    @property
    def worst(self) -> State:
        """The worst state among the findings."""
        return worst(self.findings)

    @property
    def exit_code(self) -> int:
        """1 if anything fails, else 0."""
        return 1 if self.worst == "fail" else 0

    def to_json(self) -> dict[str, Any]:
        """{"worst", "findings": [{"group", "name", "state", ...}], "ranks": [...], "links"}"""
        return {"worst": self.worst, **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "DoctorReport":
        """Inverse of `to_json`. Raises KeyError or TypeError if it is something else."""
        findings = [Finding(**finding) for finding in content["findings"]]
        return DoctorReport(findings, content["ranks"], content["links"])

    def render(self) -> RenderableType:
        """A table per group, each finding with its cure beneath it, and the count of states."""
        parts: list[RenderableType] = []
        for group, findings in groupby(self.findings, key=lambda finding: finding.group):
            parts += [Text(group, style="bold"), _table(findings), Text()]
        counts = Text()
        for state in STATES:
            count = sum(finding.state == state for finding in self.findings)
            counts.append(f"{count} {state}  ", style=_STYLES[state] if count else "dim")
        return Group(*parts, counts)


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=6, justify="right")
    table.add_column(width=17)
    table.add_column(overflow="fold")
    for finding in findings:
        value = Text(finding.value)
        if finding.hosts:
            value.append(f"  on {shortened(finding.hosts, _HOSTS)}", style="bold")
        if finding.cure:
            value.append(f"\n→ {finding.cure}", style="cyan")
        table.add_row(Text(finding.state, _STYLES[finding.state]), Text(finding.name), value)
    return table
