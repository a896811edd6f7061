"""What Slurm's settings mean, from lines as Slurm writes them; a real one: tests/launch."""

import pytest

from kaizen_dist.doctor import cluster
from kaizen_dist.launch.slurm import Node


def node(name, state="IDLE", gpus=0, address="127.0.0.1"):
    return Node(name, state, 64, 256_000, gpus, name, address)


def test_where_there_is_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = cluster.settings()
    assert found.state == "fail"
    assert "login node" in found.value


def test_a_controller_that_does_not_answer(program, monkeypatch):
    program("sinfo", "exec sleep 60")
    monkeypatch.setattr(cluster, "_SECONDS", 0.3)
    (found,) = cluster.settings()
    assert found.state == "fail"
    assert "did not answer" in found.value


def test_partitions():
    found = cluster.partition("main|up|1:00:00|1-00:00:00|REQUEUE")
    assert (found.name, found.state) == ("part. main", "ok")
    assert found.facts["max_time"] == "1-00:00:00"
    assert cluster.partition("old|drain|NONE|infinite|OFF").state == "warn"


def test_nodes_that_take_no_jobs_are_named():
    assert cluster.nodes([node("a"), node("b", "MIXED")]).state == "ok"
    found = cluster.nodes([node("a"), node("b", "DOWN*"), node("c", "IDLE+DRAIN")])
    assert found.state == "warn"
    assert "(b, c)" in found.value
    assert cluster.nodes([node("b", "DOWN*")]).state == "fail"


def test_gpus_of_a_node():
    assert cluster.gpus([node("a", gpus=8), node("b", gpus=8), node("c")]).value == "8 on 2 nodes"
    assert "none" in cluster.gpus([node("c")]).value


@pytest.mark.parametrize(
    ("settings", "state", "value"),
    [
        ({"PreemptType": "preempt/none"}, "ok", "none"),
        (
            {
                "PreemptType": "preempt/partition_prio",
                "PreemptMode": "REQUEUE",
                "SlurmctldParameters": "preempt_send_user_signal",
            },
            "ok",
            "partition_prio, REQUEUE, with the job's own signal",
        ),
        ({"PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}, "warn", "with SIGTERM"),
    ],
)
def test_preemption(settings, state, value):
    found = cluster.preemption(settings)
    assert found.state == state
    assert value in found.value


def test_requeue_and_submitit():
    assert [cluster.requeue(value).state for value in "10"] == ["ok", "warn"]
    assert [cluster.submission(there).state for there in (True, False)] == ["ok", "fail"]


def test_names_that_do_not_resolve():
    """`.invalid` never does (RFC 2606)."""
    assert cluster.names([node("localhost")]).state == "ok"
    assert cluster.names([node("n1.invalid")]).state == "warn"
    lost = cluster.names([node("n1.invalid", address="n1.invalid")])
    assert (lost.state, lost.facts["lost"]) == ("fail", ["n1.invalid"])
