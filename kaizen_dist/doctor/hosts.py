"""The findings of several machines as one list.

What all machines agree on is said once; where they differ, each variant is said with the
machines it holds for. Numbers that are fine everywhere are not held against each other: the
first machine's stands for all, unless they are few enough to be said.
"""

from collections.abc import Mapping
from dataclasses import replace

from kaizen_dist.doctor.finding import Finding

_SHOWN = 3


def join_hosts(by_host: Mapping[str, list[Finding]]) -> list[Finding]:
    """One list, in the order of the first machine's; machines as they are given."""
    if len(by_host) == 1:
        return next(iter(by_host.values()))
    groups: dict[tuple[str, str], dict[str, Finding]] = {}
    for host, findings in by_host.items():
        for finding in findings:
            groups.setdefault((finding.group, finding.name), {})[host] = finding
    return [joined for group in groups.values() for joined in _join(group, len(by_host))]


def _join(of_host: Mapping[str, Finding], hosts: int) -> list[Finding]:
    fine = {host: f for host, f in of_host.items() if f.state == "ok"}
    joined = [_fine(fine, hosts)] if fine else []
    variants: dict[tuple[str, str, str], list[str]] = {}
    for host, finding in of_host.items():
        if finding.state != "ok":
            key = (finding.state, finding.value, finding.cure)
            variants.setdefault(key, []).append(host)
    for names in variants.values():
        joined.append(replace(of_host[names[0]], hosts=names if len(names) < hosts else []))
    return joined


def _fine(fine: Mapping[str, Finding], hosts: int) -> Finding:
    values = list(dict.fromkeys(finding.value for finding in fine.values()))
    first = next(iter(fine.values()))
    more = f"; and {len(values) - _SHOWN} other values" if len(values) > _SHOWN else ""
    value = "; ".join(values[:_SHOWN]) + more
    return replace(first, value=value, hosts=list(fine) if len(fine) < hosts else [])
