"""No rank waits for a dead one: every rank shows that it lives, hears of the others and watches.

A beat thread of each rank does a round at a time in the shared store: it counts up a key of its
own and reads the verdict, if there is one; rank 0's also reads the keys of all. It alone touches
the store, and may be held up in it for good. A watchdog thread touches nothing that can hold it up:
it ends the process when no round has come to its end for `silence` seconds (the rank that keeps the
store is frozen or out of reach, or this machine is cut off), and on rank 0 it passes the verdict on
ranks that stand still. Whoever reads a verdict ends with it as message. This works the same
under every launcher and backend, where a bare collective would wait for its time-out or name a
socket.

A process that was suspended and goes on counts no silence from before: its watchdog sees that it
slept far longer than it meant to, and gives all ranks, its own included, a fresh time span.
"""

import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from torch.distributed import DistError, Store

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import Interrupted, KaizenError, PeerError, Preempted
from kaizen_dist.distributed.authentication import Seal
from kaizen_dist.distributed.rendezvous import Seat, name_ranks

_VERDICT = "verdict"
_DONE = "done"
_PREEMPTED = "preempted:"
"""How a verdict begins that ends a rank with exit code 75."""
_POLL_SECONDS = 0.05
_SAY_SECONDS = 1.0


class Heartbeat:
    """A context in which peers are watched.

    An error that leaves the context is told to the others first; an error that is only the echo of
    another rank's end (a broken collective) ends the process as soon as that end is known.
    """

    def __init__(
        self,
        store: Store,
        seat: Seat,
        seal: Seal,
        silence: float,
        stuck: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._store, self._seat, self._seal, self._silence = store, seat, seal, silence
        self._stuck = stuck
        """Asked why this rank does not get on, while it lives; None = it does."""
        self._interval = silence / 10
        self._leaving = threading.Event()
        self._words: str | None = None
        """The verdict that this rank has to publish."""
        begun = time.monotonic()
        self._round = begun
        """When the last round of this rank came to its end."""
        self._signs = dict.fromkeys(range(1, seat.world_size), begun) if seat.rank == 0 else {}
        """Of each rank, when it last showed that it lives; inf once it has left."""
        self._counts = dict.fromkeys(self._signs, -1)
        self._beat_thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat_thread.start()
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, RuntimeError) and _from_collective(error):
            # Another rank's end; when it is known our threads end this process with its name.
            time.sleep(2 * self._silence)
            error = PeerError(
                f"a collective failed although all ranks seem alive: {str(error).splitlines()[0]}"
            )
            self._leave(error)
            raise error from None
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Say goodbye to the others, or tell them what happened."""
        self._words = self._last_words(error)
        self._leaving.set()
        # A thread still inside the store when the interpreter goes would abort the process.
        self._beat_thread.join(self._silence)

    def _last_words(self, error: BaseException | None) -> str | None:
        if error is None:
            return self._words
        if isinstance(error, Preempted):
            return f"{_PREEMPTED} rank {self._seat.rank} was {error}"
        if isinstance(error, Interrupted):
            resumable = "the same command goes on where it can"
            return f"rank {self._seat.rank} was interrupted; {resumable}"
        told = isinstance(error, KaizenError)
        summary = str(error) if told else f"{type(error).__name__}: {error}"
        return f"rank {self._seat.rank} failed: {(summary.splitlines() or [''])[0]}"

    # ---- the thread that speaks with the store ----------------------------------------------

    def _beat(self) -> None:
        for count in itertools.count():
            leaving = self._leaving.is_set()
            try:
                verdict = self._do_round(_DONE if leaving else str(count))
                if leaving or verdict is not None:
                    self._see_off()
            except RuntimeError:
                verdict = f"{self._seat.keeper} is gone or out of reach"
            if leaving:
                return
            self._round = time.monotonic()
            if verdict is not None and not self._leaving.is_set():
                self._end(verdict)
            self._leaving.wait(self._interval)

    def _do_round(self, sign: str) -> str | None:
        """Publish what there is to say, show that this rank lives, look at the others."""
        if self._words is not None:
            self._publish(self._words)
        self._put(f"beat/{self._seat.rank}", sign)
        self._look()
        verdict = self._get(_VERDICT)
        if verdict is not None:
            # Rank 0, which has to keep the store for so long, need not wait for this one.
            self._put(f"beat/{self._seat.rank}", _DONE)
        return verdict

    def _publish(self, verdict: str) -> None:
        """Tell all ranks; the first verdict stands, but what no rank has written is no verdict."""
        if self._get(_VERDICT) is None:
            there = self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else ""
            self._store.compare_set(_VERDICT, there, self._seal.close(_VERDICT, one_line(verdict)))

    def _look(self) -> None:
        """Rank 0: who has shown a new sign of life?"""
        staying = [rank for rank, since in self._signs.items() if since < math.inf]
        keys = [f"beat/{rank}" for rank in staying]
        if not keys:
            return
        # Before their first beat they are not there, and asking for them would wait.
        if not self._store.check(keys):
            staying = [rank for rank in staying if self._store.check([f"beat/{rank}"])]
            keys = [f"beat/{rank}" for rank in staying]
        for rank, key, value in zip(staying, keys, self._store.multi_get(keys), strict=True):
            sign = self._seal.open(key, value)
            if sign == _DONE:
                self._signs[rank] = math.inf
            elif sign is not None and int(sign) > self._counts[rank]:
                self._signs[rank], self._counts[rank] = time.monotonic(), int(sign)

    def _see_off(self) -> None:
        """Rank 0: keep the store until all ranks have left, or would have seen why to."""
        deadline = time.monotonic() + 2 * self._interval
        while any(since < math.inf for since in self._signs.values()):
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_SECONDS)
            self._look()

    def _put(self, key: str, text: str) -> None:
        self._store.set(key, self._seal.close(key, text))

    def _get(self, key: str) -> str | None:
        return self._seal.open(key, self._store.get(key)) if self._store.check([key]) else None

    # ---- the thread that nothing holds up -----------------------------------------------------

    def _watch(self) -> None:
        woken = fresh = time.monotonic()
        while not self._leaving.wait(self._interval / 2):
            now = time.monotonic()
            if now - woken > self._silence / 2:
                fresh = now
            woken = now
            if now - max(fresh, self._round) > self._silence:
                self._end(
                    f"{self._seat.keeper} has not answered for {self._silence:g} s: it is frozen "
                    "or out of reach, or this machine is cut off from the network"
                )
            quiet = {rank: now - max(fresh, since) for rank, since in self._signs.items()}
            if self._words is None and max(quiet.values(), default=0) > self._silence:
                # Who has missed half of it by now went with them.
                silent = [rank for rank, span in quiet.items() if span > self._silence / 2]
                span = f"{self._silence:g} s"
                self._words = f"{name_ranks(silent)} gave no sign of life for {span}"
            # A dead peer may be why, and is to be named first; nor does suspension count here.
            calm = max(quiet.values(), default=0) <= self._silence / 2 < now - fresh
            if self._words is None and calm:
                self._words = self._stuck()

    def _end(self, verdict: str) -> NoReturn:
        """End the process: its main thread may be stuck where nothing interrupts it."""
        line = f"rank {self._seat.rank} ends: {one_line(verdict)}\n".encode(errors="replace")
        # Nor is there an end to writing where nobody reads.
        say = threading.Thread(target=os.write, args=(2, line), daemon=True)
        say.start()
        say.join(_SAY_SECONDS)
        preempted = verdict.startswith(_PREEMPTED)
        os._exit(Preempted.exit_code if preempted else PeerError.exit_code)


def _from_collective(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, DistError) or any(
        word in text for word in ("gloo", "NCCL", "ProcessGroup", "Connection")
    )
