"""Judging ranks: hand-worked numbers, in which the slow, the odd and the blind are named."""

from kaizen_dist.distributed.network import (
    Bandwidth,
    ClockOffset,
    Link,
    bus_bandwidth,
    clock_offset,
)
from kaizen_dist.doctor.ranks import RankFacts, judge_links, judge_ranks, slow_ranks

IN_STEP = ClockOffset(0.0, 0.0)


def rank(number, **more):
    facts = {"host": f"node{number + 1}", "package": "1", "torch": "2.14", "device": "CPU"}
    return RankFacts(rank=number, **facts | {"flops": 1e11, "disk_bytes_per_second": 1e8} | more)


def judged(ranks, clocks=None):
    return {f.name: f for f in judge_ranks(ranks, clocks or [IN_STEP] * len(ranks))}


def test_equal_ranks_are_well():
    found = judged([rank(n) for n in range(4)])
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "stream" not in found


def test_slower_than_the_median_by_half():
    """The median of 90, 99, 100, 102 is 99.5: below 66.3 is slow; two thirds of 99 are 66."""
    assert slow_ranks([90, 99, 100, 102]) == []
    assert slow_ranks([66.2, 99, 100, 102]) == [0]
    assert slow_ranks([100, 99, 66.4, 102]) == []
    assert slow_ranks([100, None, 50, 102, None]) == [2]
    assert slow_ranks([None]) == []


def test_the_slow_node_is_named():
    ranks = [rank(0), rank(1), rank(2, flops=6e10), rank(3, disk_bytes_per_second=None)]
    found = judged(ranks)
    assert found["compute"].state == "warn"
    assert "node3 (rank 2) 60.0 GFLOP/s" in found["compute"].value
    assert found["compute"].facts["slow"] == [{"rank": 2, "host": "node3"}]
    assert found["disk"].state == "ok"


def test_other_versions_are_named():
    found = judged([rank(0), rank(1, torch="2.11"), rank(2)])
    assert found["torch version"].state == "fail"
    assert "node2 (rank 1) 2.11" in found["torch version"].value
    assert found["package version"].state == "ok"


def test_ranks_that_see_no_stream_or_another():
    blind = rank(1, stream_problem="/data/stream.json: No such file or directory")
    found = judged([rank(0, stream_sha256="ab" * 32), blind])
    assert found["stream"].state == "fail"
    assert "node2 (rank 1) /data/stream.json" in found["stream"].value
    copies = [rank(n, stream_sha256="ab" * 32) for n in range(2)]
    assert judged(copies)["stream"].state == "ok"
    other = judged([*copies, rank(2, stream_sha256="cd" * 32)])["stream"]
    assert other.state == "fail"
    assert "node3" in other.value


def test_uneven_and_lone_ranks():
    crowded = [rank(0, host="a"), rank(1, host="a"), rank(2, host="b")]
    assert judged(crowded)["ranks"].state == "warn"
    assert judged([rank(0)])["ranks"].state == "warn"


def test_clocks():
    skewed = judged([rank(0), rank(1)], [IN_STEP, ClockOffset(-2.0, 0.001)])["clocks"]
    assert skewed.state == "warn"
    assert "-2000.00 ms on node2 (rank 1)" in skewed.value
    # As far apart as it may be for all that is known.
    assert judged([rank(0), rank(1)], [IN_STEP, ClockOffset(2.0, 1.6)])["clocks"].state == "ok"


def test_a_clock_is_read_from_the_fastest_trip():
    """Asked at 10, heard at 11: the answer 110.5 is from 10.5, so this clock is 100 s behind."""
    slow, fast = (0.0, 50.0, 9.0), (10.0, 110.5, 11.0)
    assert clock_offset([slow, fast]) == ClockOffset(-100.0, 0.5)


def test_bus_bandwidth():
    """4 ranks, 1 GB in half a second: a ring sends 2 * 3/4 of it over each link."""
    assert bus_bandwidth(10**9, 0.5, 4) == 3e9
    assert bus_bandwidth(10**9, 1.0, 2) == 1e9


def test_slow_links_are_said_by_kind():
    def link(backend, speed):
        return Link(backend, 2, 1e-4, [Bandwidth(4 << 20, speed), Bandwidth(64 << 20, None)])

    def states(hosts, *speeds):
        return [next(iter(judge_links([link(*s)], hosts))).state for s in speeds]

    assert states(2, ("nccl", 1e9), ("nccl", 5e8), ("gloo", 1e8), ("gloo", 5e7)) == [
        "ok",
        "warn",
        "ok",
        "warn",
    ]
    assert states(1, ("nccl", 1e9)) == ["warn"]
    (found,) = judge_links([link("gloo", 5e7)], 2)
    assert "GLOO_SOCKET_IFNAME" in found.cure
    assert found.value == "100 us, bus 4 MiB 0.05 GB/s, 64 MiB not tried"
