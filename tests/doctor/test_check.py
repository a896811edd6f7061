"""Checks: each within its time, and whatever goes wrong in one is a finding."""

import threading

import pytest

from kaizen_dist.common.threads import within
from kaizen_dist.doctor.checks import Check, run_checks
from kaizen_dist.doctor.report import Finding, fail_if, graded, judged, warn_if, worst


def test_what_hangs_is_a_finding_and_the_next_check_is_made():
    never = threading.Event()
    fine = Finding("disk", "room", "ok", "10 GB")
    said = []

    def hang():
        never.wait()
        return []

    checks = [
        Check("driver", hang, 0.05, "reboot"),
        Check("disk", lambda: [fine]),
    ]
    hung, second = run_checks(checks, said.append)
    never.set()
    assert (hung.group, hung.state, hung.cure) == ("driver", "fail", "reboot")
    assert "0.05 s" in hung.value
    assert second is fine
    assert said == ["looking at driver", "looking at disk"]


def test_what_raises_is_a_finding():
    def look():
        yield Finding("versions", "python", "ok", "3.12")
        raise ImportError("libcudart.so: no such file")

    before, failed = run_checks([Check("versions", look)], lambda _: None)
    assert before.name == "python"
    assert failed.state == "fail"
    assert "libcudart.so" in failed.value


def test_within_hands_on_results_and_errors():
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


def test_states_are_graded_and_summed():
    assert [graded(amount, warn=10, fail=1) for amount in (10, 9.9, 1, 0.9)] == [
        "ok",
        "warn",
        "warn",
        "fail",
    ]
    findings = [Finding("g", "n", state, "v", "cure") for state in ("ok", "fail", "warn")]
    rules = [fail_if(False, "a"), warn_if(["b"], "b"), fail_if(True, "c")]
    found = judged("g", "n", "v", {"x": 1}, *rules)
    assert (found.state, found.cure, found.facts) == ("warn", "b", {"x": 1})
    assert judged("g", "n", "v", {}, rules[0]).state == "ok"
    assert worst(findings) == "fail"
    assert worst([]) == "ok"
    assert [finding.cure for finding in findings] == ["", "cure", "cure"]
