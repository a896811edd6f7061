"""A finding: one thing that was looked at, how it is, what was seen, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["ok", "warn", "fail"]
STATES: tuple[State, ...] = ("ok", "warn", "fail")
"""From good to bad: with `warn` a run works, but slowly or not for long; with `fail` it does not
work."""


@dataclass(frozen=True)
class Finding:
    """`value` is for people, with its units; `facts` are the same as plain data."""

    group: str
    name: str
    state: State
    value: str
    cure: str = ""
    """What to do; nothing where all is well, whatever is given."""
    facts: dict[str, Any] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    """The machines it holds for, where several were asked and not all of them agree."""

    def __post_init__(self) -> None:
        if self.state == "ok":
            object.__setattr__(self, "cure", "")


def graded(amount: float, *, warn: float, fail: float) -> State:
    """The state of something of which there should be much: below `warn`, below `fail`."""
    return "fail" if amount < fail else "warn" if amount < warn else "ok"


def worst(findings: Iterable[Finding]) -> State:
    """The worst state among findings; `ok` where there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default="ok")


def gigabytes(count: float) -> str:
    """Bytes in words: 1_500_000_000 -> "1.5 GB"; below a gigabyte in MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
