"""What holds a heartbeat up: a store that does not answer, a suspended rank, a stranger's word.

Real processes under real signals. The main thread of a rank sits in a collective meanwhile, so what
ends it is its watchdog; nothing here asserts how long that takes but the time the test itself has.
"""

import hashlib
import hmac
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from started import Rank, environment_of
from torch.distributed import TCPStore

SILENCE = 3.0

SCRIPT = """
import sys, time, torch
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.exit import leave
from kaizen_dist.distributed.context import start
from kaizen_dist.common.errors import KaizenError

try:
    with start(ParallelConfig(silence_seconds=float(sys.argv[1])), threads=1) as process:
        until = time.monotonic() + float(sys.argv[2])
        print("ready", flush=True)
        go_on = 1.0
        while go_on:
            time.sleep(0.05)
            go_on = float(process.sum(torch.ones(1) * (time.monotonic() < until)))
    print("finished", flush=True)
except KaizenError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    leave(1)
leave(0)
"""


def started(port: int, world: int, seconds: float, **changes: str) -> list[Rank]:
    """Ranks that reduce something again and again for so long, once all do."""
    command = [sys.executable, "-c", SCRIPT, str(SILENCE), str(seconds)]
    ranks = [Rank(command, environment_of(rank, world, port, **changes)) for rank in range(world)]
    for rank in ranks:
        assert rank.stdout is not None
        line = rank.stdout.readline()
        assert line == "ready\n", line + rank.stdout.read()
    return ranks


def stop(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.__exit__()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_all_others_and_itself_once_it_goes_on(free_port, frozen):
    ranks = started(free_port, 3, 600)
    try:
        ranks[frozen].send_signal(signal.SIGSTOP)
        for rank in ranks:
            if rank is not ranks[frozen]:
                code, said = rank.end(120)
                assert code == 1
                words = "is frozen or out of reach" if frozen == 0 else "gave no sign of life"
                assert f"rank {frozen}" in said
                assert words in said
                assert len(said.splitlines()) == 1, said
        ranks[frozen].send_signal(signal.SIGCONT)
        code, said = ranks[frozen].end(120)
        assert code == 1, said
    finally:
        stop(ranks)


def test_ranks_that_fall_silent_together_are_named_together(free_port):
    ranks = started(free_port, 4, 600)
    try:
        for rank in ranks[2:]:
            rank.send_signal(signal.SIGSTOP)
        for rank in ranks[:2]:
            code, said = rank.end(120)
            assert code == 1
            assert "ranks 2-3 gave no sign of life" in said
    finally:
        stop(ranks)


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_is_suspended_and_continued_unevenly_goes_on(free_port, first):
    ranks = started(free_port, 2, 11)
    try:
        ranks[1].send_signal(signal.SIGSTOP)
        # Rank 0 has seen its last sign of life by now.
        time.sleep(SILENCE / 3)
        ranks[0].send_signal(signal.SIGSTOP)
        time.sleep(2 * SILENCE)
        ranks[first].send_signal(signal.SIGCONT)
        # Longer than what was left of the time span, shorter than a fresh one.
        time.sleep(SILENCE / 2)
        ranks[1 - first].send_signal(signal.SIGCONT)
        for rank in ranks:
            code, said = rank.end(120)
            assert code == 0, said
            assert "finished" in said
    finally:
        stop(ranks)


def connect(port: int) -> TCPStore:
    """As another user of this machine."""
    return TCPStore(
        "127.0.0.1", port, timeout=timedelta(seconds=20), wait_for_workers=False, is_master=False
    )


EVIL = "rank 1 failed: \x1b]0;owned\x07 send your password"
KEYS = ["kaizen/0/notice", "kaizen/0/verdict", "heartbeat/verdict", "verdict"]
"""Where ranks look for a notice, and where they once did."""


@pytest.mark.parametrize("value", [None, b"\xff\xfe"])
def test_a_strangers_notice_ends_no_run_and_does_not_keep_ours_out(free_port, value):
    ranks = started(free_port, 2, 8, KAIZEN_RUN_SECRET="only ours")
    try:
        stranger = connect(free_port)
        forged = hmac.new(b"guessed", EVIL.encode(), hashlib.sha256).hexdigest()
        for key in KEYS:
            stranger.set(key, value or f"{forged} {EVIL}")
            stranger.set(key.replace("verdict", "beat/1").replace("notice", "beat/1"), "done")
        time.sleep(SILENCE)
        assert [rank.poll() for rank in ranks] == [None, None]
        ranks[1].send_signal(signal.SIGSTOP)
        code, said = ranks[0].end(120)
        assert code == 1
        assert said == f"rank 0 ends: rank 1 gave no sign of life for {SILENCE:g} s\n"
    finally:
        stop(ranks)


def test_without_a_secret_what_is_printed_is_still_text(free_port):
    ranks = started(free_port, 2, 600)
    try:
        stranger = connect(free_port)
        key, text = "notice", EVIL
        mark = hmac.new(b"", f"{key}\n{text}".encode(), hashlib.sha256).hexdigest()
        stranger.set("kaizen/0/notice", f"{mark} {text}")
        for rank in ranks:
            code, said = rank.end(120)
            assert code == 1
            assert "\x1b" not in said
            assert "\\x1b]0;owned" in said
    finally:
        stop(ranks)


def test_a_rank_whose_words_nobody_reads_ends_too(free_port):
    """Its standard error is a full pipe, as when the machine that shows it is cut off."""
    filled = (
        "import os, sys\nos.set_blocking(2, False)\n"
        "try:\n    while True: os.write(2, b'x' * 4096)\nexcept BlockingIOError: pass\n"
        "os.set_blocking(2, True)\n"
    )
    commands = [
        [sys.executable, "-c", code, str(SILENCE), "600"] for code in (SCRIPT, filled + SCRIPT)
    ]
    with (
        Rank(commands[0], environment_of(0, 2, free_port)) as first,
        subprocess.Popen(
            commands[1],
            env=environment_of(1, 2, free_port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as second,
    ):
        assert second.stdout is not None
        try:
            assert second.stdout.readline() == b"ready\n"
            first.send_signal(signal.SIGSTOP)
            assert second.wait(120) == 1
        finally:
            second.kill()
