"""What does not decode in a run: counted over all ranks, and each sample said once.

In come the loaders' faults, out come lines on standard error, by the rank that met them, and
the `replaced` of events.jsonl. It ends the run when all ranks together meet too many.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import Fault, Faults
from kaizen_dist.views.loader import Batch, undecodable


class FaultLog:
    """One of a run; `warn` prints a line on this rank."""

    def __init__(self, context: RankContext, warn: Callable[[str], None]) -> None:
        self._context = context
        self._warn = warn
        self._told: set[str] = set()
        self._replaced = 0

    def begin(self, faults: Faults) -> None:
        """A task's loader has begun to collect these."""
        self._faults = faults
        self._replaced = 0

    def note(self, batch: Batch) -> None:
        """A batch has come: count what was replaced in it, and say what is new."""
        self._replaced += len(batch.replaced)
        for fault in self._faults.found():
            self.tell(fault)

    def tell(self, fault: Fault) -> None:
        """Say a fault, the first time it is met."""
        if fault.where not in self._told:
            self._told.add(fault.where)
            who = f"rank {self._context.rank}: " if self._context.world_size > 1 else ""
            self._warn(f"WARNING: {who}{fault}; another takes its place")

    def replaced(self) -> int:
        """Samples replaced since the last call, over all ranks, which call together.

        Raises:
            DataError: if more distinct ones than `views.max_bad` allows do not decode.
        """
        own = torch.tensor([self._replaced, len(self._faults)], device=self._context.device)
        replaced, bad = (int(n) for n in self._context.sum(own).tolist())
        if self._faults.too_many(bad):
            # Several ranks may have met the same replayed image: it is one.
            self._faults.check(self._distinct(bad))
        self._replaced = 0
        return replaced

    def _distinct(self, longest: int) -> int:
        """Bad samples of all ranks; none has more than `longest`."""
        ids = torch.full((longest,), -1, device=self._context.device)
        own = self._faults.ids()
        ids[: len(own)] = torch.from_numpy(own).to(ids)
        return int((self._context.all_gather(ids).unique() >= 0).sum())

    def undecodable(
        self, split: Split, rows: NDArray[np.int64], progress: Callable[[int, int], None]
    ) -> NDArray[np.int64]:
        """Those of some rows that do not decode, on every rank; each tries its share.

        `progress` is told (done, of this rank's).
        """
        rank, world = self._context.rank, self._context.world_size
        places = range(rank, len(rows), world)
        bad = torch.zeros(len(rows), dtype=torch.int64, device=self._context.device)
        for done, place in enumerate(places):
            progress(done, len(places))
            fault = undecodable(split, int(rows[place]))
            if fault is not None:
                bad[place] = 1
                self.tell(fault)
        return rows[self._context.sum(bad).cpu().numpy() > 0]
