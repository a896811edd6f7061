"""Preemption: SIGTERM, SIGUSR1 and SIGUSR2 end a run after a step, with a checkpoint.

A handler only sets a flag, which the loop reads between two steps. The ranks get a signal at
different moments but have to save the same step, so they agree: each step starts a small
all-reduce of the flags on a process group of its own, and the next step reads its result. A second
SIGTERM, or the end of `checkpoint.grace_seconds`, ends the process at once; checkpoints appear by
one rename, so that none is torn by that. A signal that came while the process started counts from
the moment the context is entered.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from kaizen_dist.common.errors import Preempted
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.distributed.exit import abort
from kaizen_dist.distributed.signals import SIGNALS, insists, noted


class Preemption:
    """A context that handles the signals."""

    def __init__(self, context: RankContext, grace_seconds: float) -> None:
        self._context = context
        self._grace = grace_seconds
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def __enter__(self) -> "Preemption":
        # Only the main thread may set handlers; elsewhere (an embedding program) none are set.
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
            if early := noted():
                self._begin_grace(early)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if error is None and self._pending is not None:
            self._pending.wait()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if insists(number):
            os._exit(128 + number)
        if self._received is None:
            self._begin_grace(signal.Signals(number))

    def _begin_grace(self, received: signal.Signals) -> None:
        self._received = received
        watch = threading.Timer(self._grace, self._give_up)
        watch.daemon = True
        watch.start()

    def _give_up(self) -> None:
        abort(
            f"rank {self._context.rank}: no step and checkpoint within {self._grace:g} s of the "
            "signal; the checkpoint before stands",
            Preempted.exit_code,
        )

    @property
    def reason(self) -> str:
        """The signal, for a message."""
        return self._received.name if self._received else "a signal to another rank"

    def asked(self) -> bool:
        """Whether to stop before the next step: the same answer on every rank at every step.

        All ranks call once a step. With several ranks the answer is one step old.
        """
        if self._context.world_size == 1:
            return self._received is not None
        stop = False
        if self._pending is not None:
            self._pending.wait()
            stop = bool(self._flag.item())
            self._pending = None
        if not stop:
            self._flag.fill_(self._received is not None)
            self._pending = dist.all_reduce(
                self._flag, dist.ReduceOp.MAX, group=self._context.control, async_op=True
            )
        return stop

    def check(self) -> None:
        """End now, each rank by itself, where there is no step to finish (in evaluation).

        Raises:
            Preempted: if a signal was received.
        """
        if self._received is not None:
            raise Preempted(f"stopped by {self.reason}; the same command goes on")
