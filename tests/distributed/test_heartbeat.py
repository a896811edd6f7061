"""Peers that fail, fall silent or take the store with them, in real processes.

The main thread of a waiting rank may be stuck in a collective, so a notice ends the process
itself; what it says is read from its standard error.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, time, torch
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.exit import leave
from kaizen_dist.distributed.context import start
from kaizen_dist.common.errors import DataError, KaizenError

what = sys.argv[1]
try:
    with start(ParallelConfig(silence_seconds=float(sys.argv[2])), threads=1) as process:
        if process.rank == int(sys.argv[3]):
            if what == "fails":
                raise DataError("broken on purpose\\nwith details")
            if what == "crashes":
                raise ZeroDivisionError("a defect")
            if what == "dies":
                os._exit(9)
            if what == "is slow":
                time.sleep(3 * float(sys.argv[2]))
        print(int(process.sum(torch.ones(1)).item()))
except KaizenError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    leave(1)
leave(0)
"""


def outcome(free_port: int, what: str, who: int, silence: float = 3.0):
    """(exit code, output, errors) of both ranks, where rank `who` does `what`."""
    started = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, what, str(silence), str(who)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


@pytest.mark.parametrize("who", [0, 1])
def test_a_failure_is_told_to_the_others_with_its_first_line(free_port, who):
    answers = outcome(free_port, "fails", who)
    assert answers[who][0] == 1
    assert "DataError: broken on purpose" in answers[who][2]
    code, _, said = answers[1 - who]
    assert code == 1
    assert f"rank {who} failed: broken on purpose" in said
    assert "with details" not in said


def test_a_defect_is_told_with_its_kind(free_port):
    answers = outcome(free_port, "crashes", 1)
    assert "rank 1 failed: ZeroDivisionError: a defect" in answers[0][2]
    assert "Traceback" in answers[1][2]


@pytest.mark.parametrize(
    ("who", "notice"), [(1, "rank 1 gave no sign of life"), (0, "rank 0, which hosts")]
)
def test_a_rank_that_is_gone_is_named(free_port, who, notice):
    code, _, said = outcome(free_port, "dies", who)[1 - who]
    assert code == 1
    assert notice in said


def test_a_rank_that_is_slow_is_waited_for(free_port):
    # Three times the silence in which it computes: its heartbeat goes on all the while.
    for code, out, said in outcome(free_port, "is slow", 1, silence=2.0):
        assert code == 0, said
        assert out.strip() == "2"
