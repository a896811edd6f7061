"""How the ranks of a run find each other.

A launcher passes each rank torchrun's environment variables (`slurm_env.py` translates Slurm's).
Rank 0 hosts a key-value store at MASTER_ADDR:MASTER_PORT unless torchrun does; every rank registers
there and waits for the others. Each failure is one line, in time.
"""

import errno
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from torch.distributed import PrefixStore, TCPStore

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import KaizenError, PeerError, UsageError
from kaizen_dist.common.threads import within
from kaizen_dist.distributed.store import LOOPBACK, SIGNING_VARIABLE, SignedStore

T = TypeVar("T")

_COMPLETE, _FAILED = "complete", "failed"
"""Keys of the store."""
_LINGER_SECONDS = 1.0
"""Rank 0 keeps the store so long after a failure, so that the others read the reason."""
_LONGEST_PAUSE = 0.5
_BACKLOG = 4096
_ROUTE = "whether MASTER_ADDR and MASTER_PORT lead"


@dataclass(frozen=True)
class LaunchInfo:
    """What the launcher passed to this rank."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    host: str = LOOPBACK
    port: int = 0
    launcher_hosts: bool = False
    """torchrun hosts the store, not rank 0."""
    attempt: int = 0
    """torchrun's restart count; it hosts one store for all attempts."""
    secret: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """Host and port of the store, printable."""
        return f"{one_line(self.host)}:{self.port}"

    @property
    def hosts_store(self) -> bool:
        """Whether this rank hosts the store."""
        return self.rank == 0 and not self.launcher_hosts

    @property
    def store_host(self) -> str:
        """The host of the store, for a message."""
        who = "torchrun" if self.launcher_hosts else "rank 0"
        return f"{who}, which hosts the ranks' store at {self.address},"


def launch_info(environment: Mapping[str, str]) -> LaunchInfo:
    """From torchrun's variables; without them that of a single process.

    Raises:
        UsageError: naming the variable that is missing or invalid.
    """
    if "RANK" not in environment:
        if _number(environment, "WORLD_SIZE", 1, None) > 1:
            raise UsageError(
                f"WORLD_SIZE={environment['WORLD_SIZE']} but RANK is not set: give each process "
                "its RANK, start the ranks with --procs N, torchrun or srun, or unset WORLD_SIZE "
                "to run alone"
            )
        return LaunchInfo()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        meaning = "; LOCAL_RANK counts the ranks of one machine from 0"
        raise UsageError(
            f"RANK is set but {', '.join(missing)} is not: start the ranks with --procs N, "
            "torchrun or srun, set it yourself, or unset RANK to run alone"
            f"{meaning if 'LOCAL_RANK' in missing else ''}"
        )
    world_size = _number(environment, "WORLD_SIZE", 1, None)
    host = environment["MASTER_ADDR"]
    return LaunchInfo(
        _number(environment, "RANK", 0, world_size - 1),
        world_size,
        _number(environment, "LOCAL_RANK", 0, None),
        # The name stands for two addresses, one of which another process may hold.
        LOOPBACK if host == "localhost" else host,
        _number(environment, "MASTER_PORT", 1, 65535),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0, None),
        environment.get(SIGNING_VARIABLE, ""),
    )


def rendezvous(info: LaunchInfo, seconds: float) -> SignedStore:
    """Wait for all ranks; the store in which they communicate.

    Raises:
        PeerError: naming the ranks that have not registered within `seconds`, or the reason.
        KaizenError: if rank 0 cannot listen.
        UsageError: if the ranks were launched inconsistently.
    """
    deadline = time.monotonic() + seconds

    def meet() -> SignedStore:
        if info.hosts_store:
            store = _open(info, seconds, _listen(info))
        else:
            _wait_for_listener(info, seconds, deadline)
            store = _open(info, seconds)
        try:
            _register(store, info, seconds, deadline)
        except KaizenError as error:
            # The others read the reason before they time out.
            store.set(_FAILED, f"rank {info.rank}: {one_line(str(error).splitlines()[0])}")
            if info.hosts_store:
                time.sleep(_LINGER_SECONDS)
            raise
        return store

    return _answered(info, seconds + 2 * _LINGER_SECONDS, meet)


def connect(info: LaunchInfo, seconds: float) -> SignedStore:
    """A connection of its own to the store of a rendezvous. Raises PeerError."""
    return _answered(info, seconds, lambda: _open(info, seconds))


def name_ranks(ranks: Sequence[int]) -> str:
    """rank 3, or ranks 1, 4-7"""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    named = ", ".join("-".join(map(str, part)) for part in parts)
    return f"rank{'s' if len(ranks) > 1 else ''} {named}"


def _number(environment: Mapping[str, str], name: str, least: int, most: int | None) -> int:
    text = environment.get(name, str(least))
    number = int(text) if text.isdecimal() else -1
    if number < least or (most is not None and number > most):
        limit = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name}={one_line(text)}: must be a whole number {limit}")
    return number


def _answered(info: LaunchInfo, seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, which waits for the store."""
    try:
        return within(seconds, work)
    except TimeoutError:
        raise PeerError(
            f"{info.store_host} does not answer: is it frozen, or does another process listen "
            "there? Choose another MASTER_PORT, or end what blocks it"
        ) from None
    except RuntimeError as error:  # torch's own; its text may have a native stack behind it
        symptom = one_line((str(error).splitlines() or [""])[0])
        raise PeerError(f"{info.store_host} is gone or no store of a run: {symptom}") from None


def _open(info: LaunchInfo, seconds: float, listener: socket.socket | None = None) -> SignedStore:
    """A connection to the store, which this process hosts if it is given a listening socket."""
    own = listener is not None and not _is_loopback(info.host)
    store = TCPStore(
        LOOPBACK if own else info.host,
        info.port,
        is_master=listener is not None,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )
    return SignedStore(PrefixStore(f"kaizen/{info.attempt}", store), info.secret)


def _listen(info: LaunchInfo) -> socket.socket:
    """Rank 0's port: on the loopback only if MASTER_ADDR is there, else on all interfaces.

    Raises:
        KaizenError: if it is taken.
    """
    place = (info.host if _is_loopback(info.host) else "", info.port)
    six = ":" in place[0] or (not place[0] and socket.has_dualstack_ipv6())
    try:
        return socket.create_server(
            place,
            family=socket.AF_INET6 if six else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=six and not place[0],
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise KaizenError(
            f"rank 0 cannot listen at {info.address}, where the ranks connect: "
            f"{'the port is in use' if taken else error.strerror or error}; set MASTER_PORT to a "
            "free one for all ranks, or end the process that holds it"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wait_for_listener(info: LaunchInfo, seconds: float, deadline: float) -> None:
    """Wait until somebody listens. (The store's own client gives no reason, takes twice its time
    and fills a screen.)"""
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((info.host, info.port), max(left, 0.1)).close()
            return
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
        if time.monotonic() + _LONGEST_PAUSE > deadline:
            raise PeerError(
                f"rank 0 could not be reached within {seconds:g} s at {info.address} from "
                f"{one_line(socket.gethostname())}: {why}; check whether it was started and what "
                f"it printed, and {_ROUTE} to it from this machine (firewall, names)"
            )
        time.sleep(_LONGEST_PAUSE)


def _register(store: SignedStore, info: LaunchInfo, seconds: float, deadline: float) -> None:
    """Register this rank and wait for the others; rank 0 announces that all have."""
    mine = _key(info.rank)
    if store.get(mine) is not None:
        raise UsageError(
            f"rank {info.rank} is at {info.address} already: two processes have this RANK, or two "
            "runs this MASTER_PORT"
        )
    store.set(mine, str(info.world_size))
    pause = _LONGEST_PAUSE / 32
    while not store.get(_COMPLETE):
        if info.rank == 0 and _all_registered(store, info.world_size):
            store.set(_COMPLETE, "yes")
        elif reason := store.get(_FAILED):
            raise PeerError(reason)
        elif time.monotonic() > deadline:
            raise PeerError(_missing(store, info, seconds))
        else:
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


def _all_registered(store: SignedStore, world_size: int) -> bool:
    """Raises UsageError for a rank that was given another world size."""
    keys = [_key(rank) for rank in range(world_size)]
    if not store.has(*keys):
        return False
    sizes = store.get_all(keys)
    for rank, theirs in enumerate(sizes):
        if theirs not in (None, str(world_size)):
            raise UsageError(
                f"rank {rank} was started with WORLD_SIZE={theirs}, rank 0 with {world_size}: "
                "start all ranks with the same"
            )
    return None not in sizes


def _missing(store: SignedStore, info: LaunchInfo, seconds: float) -> str:
    """The message that names the ranks that have not registered."""
    here = [r for r in range(info.world_size) if store.get(_key(r)) is not None]
    missing = [r for r in range(info.world_size) if r not in here]
    foreign = [r for r in missing if store.has(_key(r))]
    secret = f" ({name_ranks(foreign)} without this run's {SIGNING_VARIABLE})" if foreign else ""
    return (
        f"{name_ranks(missing)} of {info.world_size} did not connect to {info.address} within "
        f"{seconds:g} s{secret}, where {name_ranks(here)} waited; check what they printed and "
        f"whether all were started, and {_ROUTE} there from every machine (firewall, names)"
    )


def _key(rank: int) -> str:
    return f"registered/{rank}"
