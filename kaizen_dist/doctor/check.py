"""Runs what looks, each within its time: a driver, disk or daemon that hangs is a finding too.

In come checks, out come their findings. A check runs on a thread of its own, since nothing else
gives up a system call that never returns; such a thread ends with the process.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kaizen_dist.common.threads import within
from kaizen_dist.doctor.finding import Finding


@dataclass(frozen=True)
class Check:
    """What looks at a group of things, and how long that may take."""

    group: str
    look: Callable[[], Iterable[Finding]]
    seconds: float = 20.0
    cure: str = "run it again; if it stays, see whether the machine's disks and drivers answer"
    """What to do where there is no answer in time."""


def run_checks(checks: Iterable[Check], say: Callable[[str], None]) -> list[Finding]:
    """The findings of all checks; `say` is told of each before it begins.

    What a check found before it failed or ran out of time stays.
    """
    findings: list[Finding] = []
    for check in checks:
        say(f"looking at {check.group}")
        found: list[Finding] = []
        problem = _problem(check, found)
        findings += list(found)
        if problem is not None:
            findings.append(problem)
    return findings


def _problem(check: Check, found: list[Finding]) -> Finding | None:
    """Make a check, which fills `found`; why it did not come to its end."""

    def look() -> bool:
        for finding in check.look():
            found.append(finding)
        return True

    try:
        within(check.seconds, look)
    except TimeoutError as error:
        return Finding(check.group, "time", "fail", str(error), check.cure)
    except Exception as error:  # whatever is wrong with a machine is what is asked for
        told = f"{type(error).__name__}: {error}"
        return Finding(check.group, "check", "fail", told, check.cure)
    return None
