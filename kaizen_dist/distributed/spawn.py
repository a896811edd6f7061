"""Several ranks on this machine: `--procs N`.

Starts the same command once per rank, in the environment torchrun would give it, passes
signals on, and ends all ranks as soon as one has failed, naming it. Ranks whose starter is killed
save their step and end too.
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

from kaizen_dist.common.errors import PeerError, UsageError
from kaizen_dist.distributed import signals
from kaizen_dist.distributed.authentication import VARIABLE, new_secret
from kaizen_dist.distributed.die_with_parent import tied
from kaizen_dist.distributed.rendezvous import LOOPBACK

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def launch(
    arguments: Sequence[str],
    procs: int,
    output: IO[Any] | None = None,
    log: IO[Any] | None = None,
) -> int:
    """Run `python -m kaizen_dist ARGUMENTS` as `procs` ranks; the exit code of the run.

    `output` and `log` take their standard output and error, else they are this process's own.

    Raises:
        UsageError: if this process is a rank itself.
    """
    refuse_ranks_in_a_rank(procs)
    shared = {"MASTER_PORT": str(_free_port()), VARIABLE: new_secret()}

    def forward(number: int, _: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    # A rank that cannot hear yet gets a signal that is passed on as soon as it can.
    with signals.held():
        ranks = [
            subprocess.Popen(
                tied([sys.executable, "-m", "kaizen_dist", *arguments]),
                env=_environment(rank, procs) | shared,
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
            if process.poll() is None:
                process.kill()


def refuse_ranks_in_a_rank(procs: int) -> None:
    """Raises UsageError where another launcher has started this process as one of its ranks."""
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
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    for rank in killed:
        # Nobody but us can tell: a killed rank says nothing.
        name = signal.Signals(-(codes[rank] or 0)).name
        print(f"rank {rank} was ended by {name}; ending the other ranks", file=sys.stderr)
    _end(ranks, at_once=bool(killed))
    if killed:
        return 128 - (codes[killed[0]] or 0)
    # A rank that ends because of another says less than the one that failed first.
    failed = [code for code in (process.returncode for process in ranks) if code > 0]
    return next((code for code in failed if code != PeerError.exit_code), PeerError.exit_code)


def _end(ranks: list[subprocess.Popen[bytes]], at_once: bool) -> None:
    """Leave the ranks time to end by themselves (or when told to), then kill them."""
    if at_once:
        for process in ranks:
            if process.poll() is None:
                process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(p.poll() is None for p in ranks):
        time.sleep(_POLL_SECONDS)
    for process in ranks:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment(rank: int, procs: int) -> dict[str, str]:
    # Ranks of one machine need not be reachable from others.
    defaults = {"GLOO_SOCKET_IFNAME": "lo"}
    return (
        defaults
        | os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(procs),
            "LOCAL_WORLD_SIZE": str(procs),
            "MASTER_ADDR": LOOPBACK,
        }
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
