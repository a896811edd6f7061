"""The doctor on a real Slurm: it counts the nodes, and runs itself across them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
DOCTOR = (sys.executable, "-m", "kaizen_dist", "doctor", "--slurm", "--json")


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_cluster_is_looked_at(slurm):
    report = json.loads(slurm.run(*DOCTOR, seconds=180, **HERE).stdout)
    found = {f["name"]: f for f in report["findings"] if f["group"] == "cluster"}
    assert found["nodes"]["facts"]["nodes"] == 4
    assert found["nodes"]["facts"]["lost"] == []
    assert found["part. main"]["facts"]["preempt_mode"] == "REQUEUE"
    assert found["requeue"]["state"] == "ok"
    assert found["preemption"]["facts"]["user_signal"] is True
    # The names of these nodes resolve nowhere; their address does.
    assert found["node names"]["facts"] == {"nameless": slurm.nodes, "lost": []}
    assert report["worst"] == "warn"


@pytest.mark.slurm
def test_across_two_nodes(slurm, digits, tmp_path):
    arguments = ["--nodes", "2", "--stream", digits.root, "--out", tmp_path]
    report = json.loads(slurm.run(*DOCTOR, *arguments, seconds=200, **HERE).stdout)
    assert [row["host"] for row in report["ranks"]] == ["node1", "node2"]
    found = {f["name"]: f for f in report["findings"] if f["group"] == "ranks"}
    assert found["ranks"]["facts"]["hosts"] == {"node1": 1, "node2": 1}
    assert found["stream"]["state"] == "ok"
    assert report["links"][0]["ranks"] == 2
    assert slurm.run("squeue", "-h").stdout == ""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["--nodes", "9"], "9 nodes are asked, 4 of main take jobs"),
        (["--nodes", "1", "--gpus-per-node", "2"], "0 with 2 GPUs"),
        (
            ["--nodes", "1", "--partition", "nowhere"],
            "this cluster has no nowhere; there are main, urgent",
        ),
    ],
)
def test_nodes_that_cannot_be_had(slurm, asked, why):
    done = slurm.run(*DOCTOR, *asked, check=False, seconds=180, **HERE)
    assert done.returncode == 1
    last = json.loads(done.stdout)["findings"][-1]
    assert (last["name"], last["state"]) == ("doctor on nodes", "fail")
    assert why in last["value"]
    assert slurm.run("squeue", "-h").stdout == ""


@pytest.mark.slurm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_given_up_it_leaves_no_job(slurm, number):
    """All nodes are taken, so it waits; interrupted, it takes its job out of the queue."""
    busy = slurm.submit("--nodes=4", "--exclusive", "--wrap", "sleep 100")
    slurm.wait(busy, "RUNNING")
    doctor = subprocess.Popen(
        [*DOCTOR, "--nodes", "1"], env=slurm.environment | HERE, cwd=slurm.folder
    )
    try:
        wait_until(lambda: "kaizen-d" in slurm.run("squeue", "-h").stdout)
        doctor.send_signal(number)
        assert doctor.wait(30) == 130
        assert "kaizen-d" not in slurm.run("squeue", "-h").stdout
    finally:
        doctor.kill()
        slurm.run("scancel", busy)
        slurm.wait(busy, "CANCELLED")
