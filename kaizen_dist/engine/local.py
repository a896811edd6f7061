"""Several ranks on this machine: `--procs N`.

Starts the same command once per rank, in the environment torchrun would give it, passes
signals on, and ends all ranks as soon as one has failed, naming it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def launch(arguments: Sequence[str], procs: int) -> int:
    """Run `python -m kaizen_dist ARGUMENTS` as `procs` ranks; the exit code of the run."""
    port = _free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "kaizen_dist", *arguments], env=_environment(rank, procs, port)
        )
        for rank in range(procs)
    ]

    def forward(number: int, _: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(ranks)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in ranks:
            if process.poll() is None:
                process.kill()


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or one has failed and the others had their time to end."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return _end(ranks, failed[0])
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)


def _end(ranks: list[subprocess.Popen[bytes]], first: int) -> int:
    code = ranks[first].returncode
    if code < 0:
        # Nobody but us can tell: a killed rank says nothing.
        name = signal.Signals(-code).name
        Console(stderr=True, highlight=False).print(
            f"rank {first} was ended by {name}; ending the other ranks"
        )
    deadline = time.monotonic() + _GRACE_SECONDS
    if code < 0:
        for process in ranks:
            if process.poll() is None:
                process.terminate()
    while time.monotonic() < deadline and any(p.poll() is None for p in ranks):
        time.sleep(_POLL_SECONDS)
    for process in ranks:
        if process.poll() is None:
            process.kill()
    return code if code > 0 else 128 - code


def _environment(rank: int, procs: int, port: int) -> dict[str, str]:
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(procs),
        "LOCAL_WORLD_SIZE": str(procs),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
