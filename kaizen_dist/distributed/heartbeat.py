"""No rank waits for a dead one: every rank shows that it is alive and watches the others.

A beat thread of each rank does rounds in the shared store: it increments a key of its own and reads
the notice of the run's end, if there is one; rank 0's also reads the keys of all. Only this thread
uses the store, where it may block for ever. A watchdog thread uses nothing that can block: it ends
the process when no round has finished for `silence` seconds (the rank that hosts the store is
frozen or unreachable, or this machine is cut off), and on rank 0 it issues the notice about ranks
that have stopped. Whoever reads a notice ends with it as message. This works the same under every
launcher and backend, where a bare collective would wait for its time-out or name a socket.

A process that was suspended and continues does not count the silence before: its watchdog notices
that it slept far longer than intended and gives all ranks, its own included, a new time span.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from torch.distributed import DistError

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import Interrupted, KaizenError, PeerError, Preempted
from kaizen_dist.distributed.exit import abort
from kaizen_dist.distributed.rendezvous import LaunchInfo, name_ranks
from kaizen_dist.distributed.store import SignedStore

_NOTICE = "notice"
"""Key of the reason why the run ends."""
_DONE = "done"
"""Last beat of a rank that leaves."""
_PREEMPTED = "preempted:"
"""Prefix of a notice that ends the ranks with exit code 75."""
_POLL_SECONDS = 0.05


class Heartbeat:
    """A context in which the ranks watch each other.

    An error that leaves the context is announced to the others first; an error that only follows
    from another rank's end (a broken collective) ends the process as soon as that end is known.
    `stuck` returns why this rank makes no progress although it is alive, or None.
    """

    def __init__(
        self,
        store: SignedStore,
        info: LaunchInfo,
        silence: float,
        stuck: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._store, self._info, self._silence, self._stuck = store, info, silence, stuck
        self._interval = silence / 10
        self._leaving = threading.Event()
        self._notice: str | None = None
        """The notice that this rank has to publish."""
        self._round = begun = time.monotonic()
        """When this rank finished its last round."""
        self._alive = dict.fromkeys(range(1, info.world_size), begun) if info.rank == 0 else {}
        """When each rank was last seen alive; inf after it has left."""
        self._beats = dict.fromkeys(self._alive, -1)
        self._beat_thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat_thread.start()
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        broken = isinstance(error, RuntimeError) and _from_collective(error)
        if broken:
            # Another rank's end: as soon as it is known our threads end this process with its name.
            time.sleep(2 * self._silence)
            symptom = str(error).splitlines()[0]
            error = PeerError(f"a collective failed although all ranks seem alive: {symptom}")
        if error is not None:
            self._notice = self._notice_of(error)
        self._leaving.set()
        # A thread inside the store when the interpreter shuts down would abort the process.
        self._beat_thread.join(self._silence)
        if broken and error is not None:
            raise error from None

    def _notice_of(self, error: BaseException) -> str:
        rank = f"rank {self._info.rank}"
        if isinstance(error, Preempted):
            return f"{_PREEMPTED} {rank} was {error}"
        if isinstance(error, Interrupted):
            return f"{rank} was interrupted; the same command goes on where it can"
        expected = isinstance(error, KaizenError)
        summary = str(error) if expected else f"{type(error).__name__}: {error}"
        return f"{rank} failed: {(summary.splitlines() or [''])[0]}"

    # ---- the beat thread, which uses the store ------------------------------------------------

    def _beat(self) -> None:
        for count in itertools.count():
            leaving = self._leaving.is_set()
            try:
                notice = self._do_round(_DONE if leaving else str(count))
                if leaving or notice is not None:
                    self._wait_for_leavers()
            except RuntimeError:
                notice = f"{self._info.store_host} is gone or out of reach"
            if leaving:
                return
            self._round = time.monotonic()
            if notice is not None and not self._leaving.is_set():
                self._end(notice)
            self._leaving.wait(self._interval)

    def _do_round(self, beat: str) -> str | None:
        """Publish this rank's notice and beat, look at the others; the notice there is."""
        if self._notice is not None:
            self._store.set_once(_NOTICE, one_line(self._notice))
        self._store.set(_key(self._info.rank), beat)
        self._look()
        notice = self._store.get(_NOTICE)
        if notice is not None:
            # Rank 0, which hosts the store, need not wait for this one.
            self._store.set(_key(self._info.rank), _DONE)
        return notice

    def _look(self) -> None:
        """Rank 0: read the beats of the ranks that have not left."""
        staying = [rank for rank, seen in self._alive.items() if seen < math.inf]
        if not staying:
            return
        beats = self._store.get_all([_key(rank) for rank in staying])
        for rank, beat in zip(staying, beats, strict=True):
            if beat == _DONE:
                self._alive[rank] = math.inf
            elif beat is not None and int(beat) > self._beats[rank]:
                self._alive[rank], self._beats[rank] = time.monotonic(), int(beat)

    def _wait_for_leavers(self) -> None:
        """Rank 0: keep the store until all ranks have left, or have had time to read the notice."""
        deadline = time.monotonic() + 2 * self._interval
        while any(seen < math.inf for seen in self._alive.values()):
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_SECONDS)
            self._look()

    # ---- the watchdog thread, which nothing blocks ----------------------------------------------

    def _watch(self) -> None:
        woken = fresh = time.monotonic()
        while not self._leaving.wait(self._interval / 2):
            now = time.monotonic()
            if now - woken > self._silence / 2:
                fresh = now
            woken = now
            if now - max(fresh, self._round) > self._silence:
                self._end(
                    f"{self._info.store_host} has not answered for {self._silence:g} s: it is "
                    "frozen or out of reach, or this machine is cut off from the network"
                )
            quiet = {rank: now - max(fresh, seen) for rank, seen in self._alive.items()}
            longest = max(quiet.values(), default=0)
            if self._notice is None and longest > self._silence:
                # Ranks that have missed half of the time by now have gone with them.
                silent = [rank for rank, span in quiet.items() if span > self._silence / 2]
                self._notice = f"{name_ranks(silent)} gave no sign of life for {self._silence:g} s"
            # A dead peer may be the cause and is named first; suspended time does not count here.
            if self._notice is None and longest <= self._silence / 2 < now - fresh:
                self._notice = self._stuck()

    def _end(self, notice: str) -> NoReturn:
        """End the process: its main thread may hang where nothing interrupts it."""
        preempted = notice.startswith(_PREEMPTED)
        abort(
            f"rank {self._info.rank} ends: {one_line(notice)}",
            Preempted.exit_code if preempted else PeerError.exit_code,
        )


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _from_collective(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, DistError) or any(
        word in text for word in ("gloo", "NCCL", "ProcessGroup", "Connection")
    )
