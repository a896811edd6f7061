"""No rank waits for a dead one: a thread in every rank shows that it lives and watches.

Each rank counts up a key of its own in the shared store. Rank 0 watches all of them and
publishes a verdict when one stands still or reports an error; every rank ends, with that
verdict as its message, as soon as it reads one. When the store itself is gone, so is the
rank that hosts it. This works the same under every launcher and backend, where a bare
collective would wait for its time-out or name a socket.
"""

import os
import sys
import threading
import time
from types import TracebackType

from torch.distributed import DistError, Store

from kaizen_dist.errors import Interrupted, KaizenError, PeerError, Preempted

_VERDICT = "verdict"
_DONE = "done"
_PREEMPTED = "preempted:"
"""How a verdict begins that ends a rank with exit code 75."""
_POLL_SECONDS = 0.05


class Heartbeat:
    """A context in which peers are watched.

    An error that leaves the context is told to the others first; an error that is only the
    echo of another rank's end (a broken collective) is replaced by a `PeerError` naming it.
    """

    def __init__(self, store: Store, rank: int, world_size: int, silence: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._silence = silence
        self._interval = silence / 10
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat("0")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        finally:
            # A thread still inside the store when the interpreter goes would abort the process.
            self._stop.set()
            self._thread.join(self._silence)

    def _leave(self, error: BaseException | None) -> None:
        """Say goodbye to the others, or tell them what happened."""
        if error is None:
            self._stop.set()
            self._beat(_DONE)
        elif isinstance(error, RuntimeError) and _from_collective(error):
            verdict = self._blame(str(error))
            raise (Preempted if verdict.startswith(_PREEMPTED) else PeerError)(verdict) from None
        elif isinstance(error, Preempted):
            self._stop.set()
            self._publish(f"{_PREEMPTED} rank {self._rank} was {error}")
            self._beat(_DONE)
            if self._rank == 0:
                self._await_others()
        elif isinstance(error, Interrupted):
            self._stop.set()
            resumable = "the same command goes on where it can"
            self._publish(f"rank {self._rank} was interrupted; {resumable}")
        else:
            self._stop.set()
            told = isinstance(error, KaizenError)
            summary = str(error) if told else f"{type(error).__name__}: {error}"
            self._publish(f"rank {self._rank} failed: {summary.splitlines()[0]}")
            if self._rank == 0:
                # The store goes with this rank: leave the others time to read the verdict.
                time.sleep(2 * self._interval)

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._interval):
            count += 1
            try:
                self._beat(str(count))
                if self._rank == 0:
                    self._watch()
                verdict = self._verdict()
            except RuntimeError:
                verdict = "rank 0, which keeps the ranks together, is gone"
            if verdict is not None and not self._stop.is_set():
                print(f"rank {self._rank} ends: {verdict}", file=sys.stderr, flush=True)
                preempted = verdict.startswith(_PREEMPTED)
                # The main thread may be stuck in a collective that cannot be interrupted.
                os._exit(Preempted.exit_code if preempted else PeerError.exit_code)

    def _await_others(self) -> None:
        """Rank 0: keep the store until all ranks have left, or would have seen why to."""
        deadline = time.monotonic() + 2 * self._interval
        keys = [f"beat/{rank}" for rank in range(1, self._world_size)]
        while time.monotonic() < deadline:
            if all(self._store.get(key).decode() == _DONE for key in keys):
                return
            time.sleep(_POLL_SECONDS)

    def _beat(self, value: str) -> None:
        with self._lock:
            self._store.set(f"beat/{self._rank}", value)

    def _verdict(self) -> str | None:
        with self._lock:
            known = self._store.check([_VERDICT])
            return self._store.get(_VERDICT).decode() if known else None

    def _publish(self, verdict: str) -> None:
        """Tell all ranks; the first verdict stands."""
        try:
            with self._lock:
                self._store.compare_set(_VERDICT, "", verdict)
        except RuntimeError:
            return  # the store is gone with rank 0, and every rank sees that by itself

    def _watch(self) -> None:
        """Rank 0: publish a verdict over any rank that stands still."""
        now = time.monotonic()
        for rank in range(1, self._world_size):
            with self._lock:
                value = self._store.get(f"beat/{rank}").decode()
            last, since = self._seen.get(rank, ("", now))
            if value not in (last, _DONE):
                last, since = value, now
            self._seen[rank] = (last, since)
            if value != _DONE and now - since > self._silence:
                self._publish(f"rank {rank} gave no sign of life for {self._silence:g} s")

    def _blame(self, symptom: str) -> str:
        """Why a collective broke: the verdict, once there is one."""
        deadline = time.monotonic() + 2 * self._silence
        while time.monotonic() < deadline:
            try:
                verdict = self._verdict()
            except RuntimeError:
                return "rank 0, which keeps the ranks together, is gone"
            if verdict is not None:
                self._stop.set()
                return verdict
            time.sleep(self._interval)
        return f"a collective failed although all ranks seem alive: {symptom}"


def _from_collective(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, DistError) or any(
        word in text for word in ("gloo", "NCCL", "ProcessGroup", "Connection")
    )
