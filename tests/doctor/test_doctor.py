"""The verb itself: alone, as two real ranks, and with ranks that do not meet."""

import hashlib
import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from kaizen_dist.cli import app

MEET = """
import json
from pathlib import Path
from kaizen_dist.doctor import checks
checks._MEET_SECONDS = 1.0
checks.examine_here = lambda *_: []
print(json.dumps(checks.examine_ranks(Path("."), None).to_json()))
"""


def test_two_ranks(digits, tmp_path):
    arguments = ["--procs", "2", "--json", "--stream", digits.root, "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "kaizen_dist", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    report = json.loads(done.stdout)
    assert done.returncode == (report["worst"] == "fail"), done.stderr
    groups = list(dict.fromkeys(finding["group"] for finding in report["findings"]))
    assert groups == ["versions", "devices", "limits", "storage", "ranks"]
    storage = {f["name"]: f["facts"] for f in report["findings"] if f["group"] == "storage"}
    assert list(storage) == ["stream", "end to end", "by offset", "loader"]
    assert storage["stream"] == {"sha256": digits.fingerprint}
    assert storage["by offset"]["images_per_second"] > 0
    assert storage["loader"]["images_per_second"] > 0
    ranks = report["ranks"]
    assert [row["rank"] for row in ranks] == [0, 1]
    manifest = (digits.root / "stream.json").read_bytes()
    assert {row["stream_sha256"] for row in ranks} == {hashlib.sha256(manifest).hexdigest()}
    assert all(row["flops"] > 0 for row in ranks)
    assert ranks[0]["disk_bytes_per_second"] > 0
    assert ranks[1]["disk_bytes_per_second"] is None, "one a machine"
    # Both read the same clock, so that what is found must be what is not known.
    assert 0 <= abs(ranks[1]["ahead_seconds"]) <= ranks[1]["accuracy_seconds"] < 1
    gloo = report["links"][-1]
    assert (gloo["backend"], gloo["ranks"]) == ("gloo", 2)
    assert gloo["latency_seconds"] > 0
    assert [b["bytes"] for b in gloo["bandwidths"]] == [4 << 20, 64 << 20]
    assert all(b["bus_bytes_per_second"] > 0 for b in gloo["bandwidths"])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_exit_1():
    """/proc has no room."""
    done = CliRunner().invoke(app, ["doctor", "--out", "/proc"])
    assert done.exit_code == 1
    assert "fail disk" in done.stdout


def test_ranks_that_do_not_meet_are_a_finding(free_port):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    done = subprocess.run(
        [sys.executable, "-c", MEET],
        env=os.environ | alone | there,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    (found,) = report["findings"]
    assert (found["name"], found["state"]) == ("meeting", "fail")
    assert "MASTER_ADDR" in found["cure"]


def test_nodes_are_those_of_a_cluster():
    assert CliRunner().invoke(app, ["doctor", "--nodes", "2"]).exit_code != 0


def test_help_has_an_example():
    done = CliRunner().invoke(app, ["doctor", "--help"])
    assert "kaizen-dist doctor --procs 2" in done.stdout
