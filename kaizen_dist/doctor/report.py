"""All that a doctor found, as a table for a terminal of 80 columns or as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kaizen_dist.doctor.finding import STATES, Finding, State, worst

_STYLES: dict[State, str] = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
_HOSTS = 4
"""So many machines are named beside a finding."""
_NAME_WIDTH = 17


@dataclass(frozen=True)
class Report:
    """Findings, and what was measured among ranks, where there were any."""

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
    def from_json(content: Mapping[str, Any]) -> "Report":
        """Back from `to_json`. Raises KeyError or TypeError if it is something else."""
        findings = [Finding(**finding) for finding in content["findings"]]
        return Report(findings, content["ranks"], content["links"])

    def render(self) -> RenderableType:
        """A table a group, each finding with its cure beneath it, and the sum of it."""
        parts: list[RenderableType] = []
        for group, findings in groupby(self.findings, key=lambda finding: finding.group):
            parts += [Text(group, style="bold"), _table(list(findings)), Text()]
        parts.append(self._sum())
        return Group(*parts)

    def _sum(self) -> Text:
        counts = {s: sum(f.state == s for f in self.findings) for s in STATES}
        text = Text()
        for state, count in counts.items():
            text.append(f"{count} {state}  ", style=_STYLES[state] if count else "dim")
        return text


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=6, justify="right")
    table.add_column(width=_NAME_WIDTH)
    table.add_column(overflow="fold")
    for finding in findings:
        style = _STYLES[finding.state]
        value = Text(finding.value)
        if finding.hosts:
            value.append(f"  on {_hosts(finding.hosts)}", style="bold")
        if finding.cure:
            value.append(f"\n→ {finding.cure}", style="cyan")
        table.add_row(Text(finding.state, style=style), Text(finding.name), value)
    return table


def _hosts(names: list[str]) -> str:
    more = f" and {len(names) - _HOSTS} more" if len(names) > _HOSTS else ""
    return ", ".join(names[:_HOSTS]) + more
