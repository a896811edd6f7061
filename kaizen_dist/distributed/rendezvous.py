"""How the ranks of a run find each other: who this one is, where all meet, and who is missing.

A launcher tells each rank by torchrun's variables (`srun.py` translates Slurm's). Rank 0 keeps a
key-value store at MASTER_ADDR and MASTER_PORT unless torchrun does; every rank says there that it
has come, and waits for the others. What goes wrong is said in one line, in time.
"""

import errno
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed import PrefixStore, Store, TCPStore

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import KaizenError, PeerError, UsageError
from kaizen_dist.common.threads import within
from kaizen_dist.distributed.authentication import VARIABLE, Seal

T = TypeVar("T")

LOOPBACK = "127.0.0.1"

_COMPLETE, _GIVEN_UP = "complete", "given up"
_LINGER_SECONDS = 1.0
"""How long rank 0 keeps the store after it has given up, so that the others read why."""
_LONGEST_PAUSE = 0.5
_BACKLOG = 4096
_CURE = (
    "see what they said and whether all were started, and whether MASTER_ADDR and MASTER_PORT lead "
    "there from every machine (firewall, names)"
)


@dataclass(frozen=True)
class Seat:
    """What this rank was told of itself."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    host: str = LOOPBACK
    port: int = 0
    launcher_hosts: bool = False
    """torchrun keeps the store, not rank 0."""
    attempt: int = 0
    """torchrun's, which keeps one store for all of them."""

    @property
    def keeper(self) -> str:
        """Who keeps the store, and where."""
        who = "torchrun" if self.launcher_hosts else "rank 0"
        return f"{who}, which keeps the ranks together at {one_line(self.host)}:{self.port},"


def seat_of(environment: Mapping[str, str]) -> Seat:
    """This rank's seat by torchrun's variables, or that of a lone process.

    Raises:
        UsageError: naming the variable that is missing or makes no sense.
    """
    if "RANK" not in environment:
        if _number(environment, "WORLD_SIZE", 1, None) > 1:
            raise UsageError(
                f"WORLD_SIZE={environment['WORLD_SIZE']} but RANK is not set: give each process "
                "its RANK, start the ranks with --procs N, torchrun or srun, or unset WORLD_SIZE "
                "to run alone"
            )
        return Seat()
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
    return Seat(
        _number(environment, "RANK", 0, world_size - 1),
        world_size,
        _number(environment, "LOCAL_RANK", 0, None),
        # The name stands for two addresses, of which somebody else may hold one.
        LOOPBACK if host == "localhost" else host,
        _number(environment, "MASTER_PORT", 1, 65535),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0, None),
    )


def meet(seat: Seat, seal: Seal, seconds: float) -> Store:
    """Wait for all ranks; the store in which they talk.

    Raises:
        PeerError: naming who has not come within `seconds`, or why this rank cannot.
        KaizenError: if rank 0 cannot listen.
        UsageError: if ranks were told different things.
    """
    deadline = time.monotonic() + seconds

    def find() -> Store:
        store = _connected(seat, seconds, deadline)
        try:
            _call_the_roll(store, seat, seal, seconds, deadline)
        except KaizenError as error:
            # The others may hear it from us before they give up by themselves.
            reason = one_line(str(error).splitlines()[0])
            store.set(_GIVEN_UP, seal.close(_GIVEN_UP, f"rank {seat.rank}: {reason}"))
            if seat.rank == 0 and not seat.launcher_hosts:
                time.sleep(_LINGER_SECONDS)
            raise
        return store

    return _answered(seat, seconds + 2 * _LINGER_SECONDS, find)


def join(seat: Seat, seconds: float) -> Store:
    """A connection of its own to the store that is there. Raises PeerError."""
    return _answered(seat, seconds, lambda: _client(seat, seconds))


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


def _answered(seat: Seat, seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns, which waits for the store."""
    try:
        return within(seconds, work)
    except TimeoutError:
        raise PeerError(
            f"{seat.keeper} does not answer: is it frozen, or does something else listen there? "
            "Choose another MASTER_PORT, or end what blocks it"
        ) from None
    except RuntimeError as error:  # torch's own; its text may have a native stack behind it
        symptom = one_line((str(error).splitlines() or [""])[0])
        raise PeerError(f"{seat.keeper} is gone or no store of a run: {symptom}") from None


def _connected(seat: Seat, seconds: float, deadline: float) -> Store:
    if seat.rank == 0 and not seat.launcher_hosts:
        listener = _listen(seat)
        host = seat.host if _is_loopback(seat.host) else LOOPBACK
        return _prefixed(seat, _store(host, seat.port, seconds, listener))
    _reach(seat, seconds, deadline)
    return _client(seat, seconds)


def _client(seat: Seat, seconds: float) -> Store:
    return _prefixed(seat, _store(seat.host, seat.port, seconds))


def _prefixed(seat: Seat, store: Store) -> Store:
    return PrefixStore(f"kaizen/{seat.attempt}", store)


def _store(host: str, port: int, seconds: float, listener: socket.socket | None = None) -> TCPStore:
    return TCPStore(
        host,
        port,
        is_master=listener is not None,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )


def _listen(seat: Seat) -> socket.socket:
    """Rank 0's port: of the loopback alone where that is where ranks meet, else of all networks.

    Raises:
        KaizenError: if it is taken.
    """
    place = (seat.host if _is_loopback(seat.host) else "", seat.port)
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
            f"rank 0 cannot listen at {one_line(seat.host)}:{seat.port}, where the ranks are to "
            f"meet: {'the port is in use' if taken else error.strerror or error}; set MASTER_PORT "
            "to a free one for all ranks, or end who holds it"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reach(seat: Seat, seconds: float, deadline: float) -> None:
    """Wait until somebody listens. (The store's own client says no reason, takes twice its time
    and fills a screen.)"""
    while True:
        left = deadline - time.monotonic()
        try:
            socket.create_connection((seat.host, seat.port), max(left, 0.1)).close()
            return
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
        if time.monotonic() + _LONGEST_PAUSE > deadline:
            raise PeerError(
                f"rank 0 was not to be reached within {seconds:g} s at {one_line(seat.host)}:"
                f"{seat.port} from {one_line(socket.gethostname())}: {why}; see whether it was "
                "started and what it said, and whether MASTER_ADDR and MASTER_PORT lead to it from "
                "this machine (firewall, names)"
            )
        time.sleep(_LONGEST_PAUSE)


def _call_the_roll(store: Store, seat: Seat, seal: Seal, seconds: float, deadline: float) -> None:
    """Say that this rank has come; rank 0 says when all have."""
    mine = _key(seat.rank)
    if _present(store, seal, mine):
        raise UsageError(
            f"rank {seat.rank} is at {one_line(seat.host)}:{seat.port} already: two processes have "
            "this RANK, or two runs this MASTER_PORT"
        )
    store.set(mine, seal.close(mine, str(seat.world_size)))
    pause = _LONGEST_PAUSE / 32
    while not _present(store, seal, _COMPLETE):
        if seat.rank == 0 and _all_here(store, seal, seat.world_size):
            store.set(_COMPLETE, seal.close(_COMPLETE, "yes"))
        elif reason := _present(store, seal, _GIVEN_UP):
            raise PeerError(reason)
        elif time.monotonic() > deadline:
            raise PeerError(_who_is_missing(store, seal, seat, seconds))
        else:
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


def _all_here(store: Store, seal: Seal, world_size: int) -> bool:
    """Whether all ranks have come. Raises UsageError for one that was told of another number."""
    keys = [_key(rank) for rank in range(world_size)]
    if not store.check(keys):
        return False
    told = [seal.open(*pair) for pair in zip(keys, store.multi_get(keys), strict=True)]
    for rank, theirs in enumerate(told):
        if theirs not in (None, str(world_size)):
            raise UsageError(
                f"rank {rank} was started with WORLD_SIZE={theirs}, rank 0 with {world_size}: "
                "start all ranks with the same"
            )
    return None not in told


def _who_is_missing(store: Store, seal: Seal, seat: Seat, seconds: float) -> str:
    here = [r for r in range(seat.world_size) if _present(store, seal, _key(r))]
    missing = [r for r in range(seat.world_size) if r not in here]
    foreign = [r for r in missing if store.check([_key(r)])]
    secret = f" ({name_ranks(foreign)} without this run's {VARIABLE})" if foreign else ""
    return (
        f"{name_ranks(missing)} of {seat.world_size} did not come to {one_line(seat.host)}:"
        f"{seat.port} within {seconds:g} s{secret}, where {name_ranks(here)} waited; {_CURE}"
    )


def _key(rank: int) -> str:
    return f"here/{rank}"


def _present(store: Store, seal: Seal, key: str) -> str | None:
    """What a rank of this run has put under a key."""
    return seal.open(key, store.get(key)) if store.check([key]) else None
