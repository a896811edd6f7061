"""How ranks find each other, and what is said when they do not: one line, in time."""

import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from started import Rank, environment_of

from kaizen_dist.common.errors import UsageError
from kaizen_dist.distributed.rendezvous import LaunchInfo, launch_info, name_ranks

SCRIPT = """
import sys, time
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.exit import leave
from kaizen_dist.distributed.context import start
from kaizen_dist.common.errors import KaizenError

begun = time.monotonic()
try:
    with start(ParallelConfig(timeout_seconds=float(sys.argv[1])), threads=1) as process:
        print(f"met {process.world_size}")
except KaizenError as error:
    print(f"{type(error).__name__}: {error}")
    assert time.monotonic() - begun < 2 * float(sys.argv[1]) + 5
    leave(error.exit_code)
leave(0)
"""


def command(seconds: float) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(seconds)]


def said_by(environments: list[dict[str, str]], seconds: float = 6) -> list[tuple[int, str]]:
    with ExitStack() as stack:
        ranks = [stack.enter_context(Rank(command(seconds), given)) for given in environments]
        return [rank.end(120) for rank in ranks]


@pytest.mark.parametrize(("come", "seconds"), [([0, 1, 3], 10), ([1, 2], 6)])
def test_who_does_not_come_is_named_with_the_place(free_port, come, seconds):
    missing = [rank for rank in range(4) if rank not in come]
    for code, words in said_by([environment_of(rank, 4, free_port) for rank in come], seconds):
        assert code == 1
        assert words.startswith("PeerError: ")
        assert f"127.0.0.1:{free_port}" in words
        assert len(words.splitlines()) == 1, words
        if 0 in come:
            assert f"{name_ranks(missing)} of 4 did not connect" in words
            assert "MASTER_ADDR" in words
        else:
            assert "rank 0 could not be reached" in words
            assert "refused" in words


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_a_port_that_is_taken_is_named(host):
    six = host == "::1"
    with socket.create_server(
        ("::1" if six else "127.0.0.1", 0), family=socket.AF_INET6 if six else socket.AF_INET
    ) as other:
        port = other.getsockname()[1]
        ((code, words),) = said_by([environment_of(0, 2, port, MASTER_ADDR=host)])
    assert code == 1
    assert f":{port}, where the ranks connect: the port is in use; set MASTER_PORT" in words
    assert len(words.splitlines()) == 1


def test_a_place_that_accepts_and_says_nothing_is_not_waited_for(free_port):
    with closing(socket.create_server(("127.0.0.1", free_port))):
        ((code, words),) = said_by([environment_of(1, 2, free_port)], 3)
    assert code == 1
    assert "does not answer: is it frozen, or does another process listen there?" in words
    assert len(words.splitlines()) == 1


def test_a_name_that_is_not_known_is_named(free_port):
    given = environment_of(1, 2, free_port, MASTER_ADDR="no-such-host.invalid")
    ((code, words),) = said_by([given], 3)
    assert code == 1
    assert "no-such-host.invalid" in words
    assert len(words.splitlines()) == 1


def test_ranks_that_were_told_of_other_numbers_are_named(free_port):
    given = [environment_of(0, 2, free_port), environment_of(1, 3, free_port)]
    for _, words in said_by(given, 60):
        assert "rank 1 was started with WORLD_SIZE=3, rank 0 with 2" in words


def test_two_processes_of_one_rank_are_named(free_port):
    ranks = [environment_of(0, 3, free_port), *[environment_of(1, 3, free_port)] * 2]
    words = [words for _, words in said_by(ranks, 60)]
    assert all("rank 1 is at" in w and "two processes have this RANK" in w for w in words), words


def test_a_rank_without_the_runs_secret_has_not_come(free_port):
    given = [
        environment_of(0, 2, free_port, KAIZEN_RUN_SECRET="ours"),
        environment_of(1, 2, free_port, KAIZEN_RUN_SECRET="another"),
    ]
    answers = said_by(given, 6)
    assert [code for code, _ in answers] == [1, 1]
    assert "rank 1 without this run's KAIZEN_RUN_SECRET" in answers[0][1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_ranks_meet_on_the_loopback_alone(free_port, host):
    """And nothing else of this machine can be reached from others."""
    given = [environment_of(rank, 2, free_port, MASTER_ADDR=host) for rank in range(2)]
    with ExitStack() as stack:
        first = stack.enter_context(Rank(command(60), given[0]))
        listening: set[str] = set()
        while not listening:
            assert first.poll() is None
            listening = listeners(free_port)
        second = stack.enter_context(Rank(command(60), given[1]))
        assert [rank.end() for rank in (first, second)] == [(0, "met 2\n")] * 2
    assert listening == {"::1" if host == "::1" else "127.0.0.1"}


def listeners(port: int) -> set[str]:
    """The addresses at which somebody listens on a port of this machine."""
    found = set()
    for file, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with Path(f"/proc/net/{file}").open() as table:
            for line in list(table)[1:]:
                _, local, _, state = line.split()[:4]
                address, _, number = local.partition(":")
                if state == "0A" and int(number, 16) == port:
                    words = [bytes.fromhex(address[i : i + 8]) for i in range(0, len(address), 8)]
                    found.add(socket.inet_ntop(family, b"".join(word[::-1] for word in words)))
    return found


RANK = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_launch_info_is_read_from_torchruns_variables():
    assert launch_info(RANK) == LaunchInfo(1, 2, 1, "127.0.0.1", 29500)
    hosted = RANK | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert launch_info(hosted) == LaunchInfo(1, 2, 1, "127.0.0.1", 29500, True, 2)
    secret = launch_info(RANK | {"KAIZEN_RUN_SECRET": "ours"})
    assert secret.secret == "ours"
    assert "ours" not in repr(secret)
    assert launch_info({}) == launch_info({"WORLD_SIZE": "1"}) == LaunchInfo()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RANK", "abc", "RANK=abc: must be a whole number from 0 to 1"),
        ("RANK", "2", "RANK=2: must be a whole number from 0 to 1"),
        ("RANK", "-1", "RANK=-1"),
        ("RANK", None, "WORLD_SIZE=2 but RANK is not set"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0: must be a whole number of 1 or more"),
        ("WORLD_SIZE", "two\n", r"WORLD_SIZE=two\\n"),
        ("LOCAL_RANK", None, "LOCAL_RANK is not.*LOCAL_RANK counts the ranks of one machine"),
        ("LOCAL_RANK", "²", "LOCAL_RANK"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not"),
        ("MASTER_PORT", "70000", "MASTER_PORT=70000: must be a whole number from 1 to 65535"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(name, value, said):
    given = {k: v for k, v in RANK.items() if k != name} | ({} if value is None else {name: value})
    with pytest.raises(UsageError, match=said):
        launch_info(given)


def test_ranks_are_named_shortly():
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([4, 1, 5, 6]) == "ranks 1, 4-6"
    assert name_ranks([0, 1]) == "ranks 0-1"
