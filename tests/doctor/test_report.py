"""Findings of several machines as one, and the report there and back."""

import io
import json

from rich.console import Console

from kaizen_dist.doctor.report import DoctorReport, Finding, join_hosts


def disk(state, value, cure=""):
    return Finding("limits", "disk", state, value, cure)


def test_what_all_agree_on_is_said_once():
    torch = Finding("versions", "torch", "ok", "2.14")
    assert join_hosts({"a": [torch], "b": [torch]}) == [torch]
    full = disk("fail", "no room", "free space")
    assert join_hosts({"a": [full], "b": [full]}) == [full]


def test_where_they_differ_each_is_named():
    hosts = {"a": [disk("ok", "9 GB")], "b": [disk("fail", "0 GB", "c")], "c": [disk("ok", "8 GB")]}
    well, full = join_hosts(hosts)
    assert (well.state, well.value, well.hosts) == ("ok", "9 GB; 8 GB", ["a", "c"])
    assert (full.state, full.hosts, full.cure) == ("fail", ["b"], "c")


def test_many_values_are_not_all_said():
    hosts = {f"n{i}": [disk("ok", f"{i} GB")] for i in range(6)}
    (found,) = join_hosts(hosts)
    assert found.value == "0 GB; 1 GB; 2 GB; and 3 other values"
    assert found.hosts == []


def test_a_finding_of_some_machines_only():
    (found,) = join_hosts({"a": [], "b": [Finding("devices", "CUDA", "ok", "13.0")]})
    assert found.hosts == ["b"]


def test_the_report_comes_back_from_json():
    found = [disk("warn", "9 GB", "free space"), Finding("g", "n", "ok", "v", facts={"x": 1})]
    report = DoctorReport(found, [{"rank": 0}], [{"backend": "gloo"}])
    assert DoctorReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert (report.worst, report.exit_code) == ("warn", 0)
    assert DoctorReport([disk("fail", "")]).exit_code == 1


def test_it_fits_80_columns():
    long = Finding("limits", "disk", "fail", "word " * 40, "cure " * 30, hosts=["node-with-a-name"])
    out = io.StringIO()
    Console(file=out, width=80).print(DoctorReport([long, disk("ok", "fine")]).render())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "limits"
    assert "→ cure" in out.getvalue()
    assert "node-with-a-name" in out.getvalue()
    assert lines[-1].split() == ["1", "ok", "0", "warn", "1", "fail"]
