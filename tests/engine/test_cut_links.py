"""Four hosts with two ranks each, whose links are cut: all end, say why, and the run goes on."""

import json
import sys
import time
from contextlib import ExitStack

import pytest
from hosts import Hosts, NotAllowed, hosts_of
from killing import METHODS, SMALL
from started import Rank, environment_of, kaizen, wait_for

from kaizen_dist.stream.prepare import prepare

HOSTS, EACH = 4, 2
WORLD = HOSTS * EACH
SILENCE = 20
CHANGED = {
    "train.max_steps": 16,
    "parallel.silence_seconds": SILENCE,
    "parallel.timeout_seconds": 240,
    "eval.knn": "false",
}
SETTINGS = [f"{key}={value}" for key, value in (SMALL | CHANGED).items()]
SETTINGS += [f"ssl.{key}={value}" for key, value in METHODS["byol"].items()]
PORT = 29_500

MEET = """
import sys
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import start
from kaizen_dist.common.errors import PeerError

try:
    with start(ParallelConfig(timeout_seconds=float(sys.argv[1]), silence_seconds=5), threads=1):
        print("met")
except PeerError as error:
    print(f"PeerError: {error}")
"""


@pytest.fixture(scope="module")
def hosts():
    try:
        with hosts_of(HOSTS) as hosts:
            yield hosts
    except NotAllowed as why:
        pytest.skip(f"no network namespaces here: {why}")


def ranks_of(hosts: Hosts, command: list[str], stack: ExitStack, count: int = WORLD) -> list[Rank]:
    ranks = []
    for rank in range(count):
        host, local = divmod(rank, EACH) if count == WORLD else (rank, 0)
        place = {"MASTER_ADDR": hosts.address(0), "GLOO_SOCKET_IFNAME": "e0"}
        place |= {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(count // HOSTS or 1)}
        environment = environment_of(rank, count, PORT, KAIZEN_RUN_SECRET="of this test", **place)
        ranks.append(stack.enter_context(Rank(command, environment, hosts.inside(host))))
    return ranks


def finish(hosts: Hosts, command: list[str]) -> None:
    with ExitStack() as stack:
        for rank in ranks_of(hosts, command, stack):
            code, said = rank.end(900)
            assert code == 0, said


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_cut_link_ends_all_ranks_by_name_and_the_run_goes_on_bit_for_bit(
    hosts, tmp_path, configs
):
    stream = prepare("digits", tmp_path / "digits", tasks=2, progress=False).root

    def train(name: str) -> list[str]:
        place = ("--stream", stream, "--out", tmp_path / name)
        return kaizen("train", configs / "digits.yaml", *SETTINGS, *place)

    def rows() -> int:
        events = tmp_path / "cut" / "events.jsonl"
        return len(events.read_text().splitlines()) if events.exists() else 0

    finish(hosts, train("whole"))
    for cut, carrier, after in ((0, True, 3), (2, False, 19)):
        with ExitStack() as stack:
            ranks = ranks_of(hosts, train("cut"), stack)
            wait_for(lambda after=after: rows() >= after, 600)
            hosts.cut(cut, carrier=carrier)
            since = time.monotonic()
            wait_for(lambda ranks=ranks: all(r.poll() is not None for r in ranks), 4 * SILENCE)
            print(f"host {cut} cut: all gone after {time.monotonic() - since:.1f} s")
            assert time.monotonic() - since < 2 * SILENCE
            said = [rank.end() for rank in ranks]
        hosts.mend(cut)
        print(*(f"{code} {words.splitlines()[-1]}" for code, words in said), sep="\n")
        off = range(EACH * cut, EACH * (cut + 1))
        silent = "ranks 2-7 gave no sign" if cut == 0 else "ranks 4-5 gave no sign"
        keeper = f"rank 0, which hosts the ranks' store at {hosts.address(0)}:{PORT},"
        for rank, (code, words) in enumerate(said):
            assert code == 1, words
            # Those on rank 0's side of the cut hear from it who is missing; the others miss it.
            heard = silent if (rank in off) == (cut == 0) else keeper
            assert heard in words, words
            assert "Traceback" not in words
    finish(hosts, train("cut"))
    ends = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert ends[0]["state_sha256"] == ends[1]["state_sha256"]
    assert ends[0]["accuracy"] == ends[1]["accuracy"]


def test_a_first_host_that_is_out_of_reach_is_named_from_where_it_was_tried(hosts):
    hosts.cut(1, carrier=False)
    try:
        with ExitStack() as stack:
            first, second = ranks_of(hosts, [sys.executable, "-c", MEET, "15"], stack, 2)
            assert "rank 1 of 2 did not connect to 10.73.0.1" in first.end()[1]
            _, said = second.end()
            assert "rank 0 could not be reached within 15 s at 10.73.0.1:29500 from " in said
            assert len(said.splitlines()) == 1
    finally:
        hosts.mend(1)
