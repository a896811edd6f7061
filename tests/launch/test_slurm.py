"""The Slurm of the tests is one: nodes, jobs, and what is left when a node dies."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster
import processes
import pytest


def script(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    return file


def users(folder: Path) -> list[processes.Known]:
    """The processes that work in a folder or have a file of it open."""
    return [
        known
        for known, _ in processes.processes()
        if any(file.is_relative_to(folder) for file in processes.open_files(known.pid))
    ]


def test_four_nodes_stand_idle(slurm):
    assert slurm.states() == dict.fromkeys(["node1", "node2", "node3", "node4"], "idle")


def test_a_job_over_four_nodes_runs_on_each_of_them(slurm, tmp_path):
    batch = script(tmp_path / "job.sh", "srun bash -c 'echo $SLURMD_NODENAME'")
    job = slurm.submit("--nodes=4", "--ntasks-per-node=1", f"--output={tmp_path}/said", batch)
    slurm.wait(job, "COMPLETED")
    said = (tmp_path / "said").read_text().split()
    assert sorted(said) == ["node1", "node2", "node3", "node4"]


def test_sacct_answers_for_jobs_and_arrays(slurm, tmp_path):
    batch = script(tmp_path / "job.sh", "exit $SLURM_ARRAY_TASK_ID")
    job = slurm.submit("--array=0-1", "--output=/dev/null", batch)
    slurm.wait(f"{job}_0", "COMPLETED")
    slurm.wait(f"{job}_1", "FAILED")
    said = slurm.run("sacct", "-o", "JobID,State", "--parsable2", "-j", job).stdout.splitlines()
    assert said[0] == "JobID|State"
    assert sorted(said[1:]) == [f"{job}_0|COMPLETED", f"{job}_1|FAILED"]


def test_two_clusters_stand_side_by_side_and_leave_nothing(slurm, cluster_folder, tmp_path):
    other = cluster.Cluster(cluster_folder, nodes=1, gpus=2)
    try:
        other.start()
        said = other.run("srun", "--gpus=2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES").stdout
        assert said.strip() == "0,1"
        other.submit("--output=/dev/null", script(tmp_path / "job.sh", "sleep 600"))
        assert len(slurm.states()) == 4
        assert len(users(other.folder)) >= 3
    finally:
        other.stop()
    assert not users(other.folder)
    assert set(slurm.states().values()) == {"idle"}


def test_a_cluster_whose_tests_are_killed_ends(tmp_path, cluster_folder):
    reason = cluster.why_not()
    if reason:
        pytest.skip(reason)
    batch = script(tmp_path / "job.sh", "sleep 600")
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cluster import Cluster
slurm = Cluster(Path({str(cluster_folder)!r}), nodes=1)
slurm.start()
slurm.wait(slurm.submit("--output=/dev/null", {str(batch)!r}), "RUNNING")
os.kill(os.getpid(), signal.SIGKILL)
"""
    tests = subprocess.run([sys.executable, "-c", code], timeout=240, check=False)
    assert tests.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while users(cluster_folder):
        assert time.monotonic() < deadline, users(cluster_folder)
        time.sleep(0.05)


@pytest.mark.slurm
def test_a_killed_nodes_job_goes_on_elsewhere(slurm, tmp_path):
    batch = script(tmp_path / "job.sh", "echo $SLURMD_NODENAME $$", "sleep 600")
    job = slurm.submit("--requeue", "--open-mode=append", f"--output={tmp_path}/said", batch)
    first = slurm.wait(job, "RUNNING")["BatchHost"]
    try:
        slurm.kill_node(first)
        second = slurm.wait(job, "RUNNING", restarts=1)["BatchHost"]
        assert second != first
    finally:
        slurm.run("scancel", job)
        slurm.revive_node(first)
    assert slurm.states()[first] == "idle"


@pytest.mark.slurm
def test_a_killed_batch_shell_ends_its_job(slurm, tmp_path):
    job = slurm.submit("--output=/dev/null", script(tmp_path / "job.sh", "sleep 600; true"))
    slurm.wait(job, "RUNNING")
    slurm.kill_batch_shell(job)
    assert slurm.wait(job, {"FAILED", "CANCELLED"})["ExitCode"] == "0:9"
