"""Several ranks on this machine: `--procs N`.

Starts the same command once per rank in the environment that torchrun would give it, forwards
signals, and ends all ranks as soon as one has failed, naming it. If this process is killed, the
ranks save their step and end too.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

from kaizen_dist.common.console import say
from kaizen_dist.common.errors import PeerError, UsageError
from kaizen_dist.distributed import signals
from kaizen_dist.distributed.die_with_parent import die_with_parent
from kaizen_dist.distributed.store import LOOPBACK, SIGNING_VARIABLE, new_secret

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def launch(
    arguments: Sequence[str],
    procs: int,
    output: IO[Any] | None = None,
    log: IO[Any] | None = None,
) -> int:
    """Run `python -m kaizen_dist ARGUMENTS` as `procs` ranks; the exit code of the run.

    `output` and `log` take their standard output and error instead of this process's own.

    Raises:
        UsageError: if this process is a rank itself.
    """
    refuse_ranks_in_a_rank(procs)
    shared = {
        "WORLD_SIZE": str(procs),
        "LOCAL_WORLD_SIZE": str(procs),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(_free_port()),
        SIGNING_VARIABLE: new_secret(),
    }
    # Ranks of one machine need not be reachable from others.
    environment = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ | shared

    def forward(number: int, _: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    # A signal waits in a rank that has no handlers yet until it has.
    with signals.held():
        ranks = [
            subprocess.Popen(
                die_with_parent([sys.executable, "-m", "kaizen_dist", *arguments]),
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=output,
                stderr=log,
            )
            for rank in range(procs)
        ]
        previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, *signals.SIGNALS)}
    try:
        if early := signals.noted():
            forward(early, None)
        return _wait(ranks)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in ranks:
            process.kill()


def refuse_ranks_in_a_rank(procs: int) -> None:
    """Raises UsageError if another launcher has started this process as one of its ranks."""
    if "RANK" in os.environ:
        world = os.environ.get("WORLD_SIZE", "?")
        raise UsageError(
            f"this would start ranks of its own (--procs {procs}), but torchrun, srun or whoever "
            f"set RANK={os.environ['RANK']} and WORLD_SIZE={world} has started this process as "
            "one: leave --procs out, or unset RANK"
        )


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or one has failed and the others had their time to end."""
    while True:
        codes = [process.poll() for process in ranks]
        if any(codes):
            break
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)
    killed = {rank: -code for rank, code in enumerate(codes) if code is not None and code < 0}
    for rank, number in killed.items():
        # A killed rank cannot report it itself.
        say(f"rank {rank} was ended by {signal.Signals(number).name}; ending the other ranks")
    if killed:
        for process in ranks:
            process.terminate()
    _end_by(time.monotonic() + _GRACE_SECONDS, ranks)
    if killed:
        return 128 + next(iter(killed.values()))
    # A rank that ends because of another says less than the one that failed first.
    failed = [process.returncode for process in ranks if process.returncode > 0]
    return next((code for code in failed if code != PeerError.exit_code), PeerError.exit_code)


def _end_by(deadline: float, ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the ranks, and kill those that still run at the deadline."""
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
