"""The bad samples of a run: counted over all ranks, each reported once by the rank that met it.

It gives `replaced` of events.jsonl, and ends the run when all ranks together meet too many.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import BadSample, BadSampleError, BadSamples, decode_row, warn
from kaizen_dist.views.loader import Batch


class BadSampleLog:
    """One of a run; `warn` reports a bad sample of this rank."""

    def __init__(self, context: RankContext, warn: Callable[[BadSample], None] = warn) -> None:
        self._context, self._warn = context, warn
        self._reported: set[str] = set()

    def begin(self, bad_samples: BadSamples) -> None:
        """A task's loader has begun to collect these."""
        self._bad_samples, self._replaced = bad_samples, 0

    def note(self, batch: Batch) -> None:
        """Count the samples replaced in a batch, and report new bad ones."""
        self._replaced += len(batch.replaced)
        for sample in self._bad_samples.found():
            self.report(sample)

    def report(self, sample: BadSample) -> None:
        """Report a bad sample, the first time it is met."""
        if sample.where not in self._reported:
            self._reported.add(sample.where)
            self._warn(sample)

    def replaced(self) -> int:
        """Samples replaced since the last call, over all ranks, which call together.

        Raises:
            DataError: if more distinct ones than `views.max_bad` allows do not decode.
        """
        own = torch.tensor([self._replaced, len(self._bad_samples)], device=self._context.device)
        replaced, bad = (int(n) for n in self._context.sum(own).tolist())
        if self._bad_samples.too_many(bad):
            # Several ranks may have met the same replayed image: it is one.
            self._bad_samples.check(self._distinct(bad))
        self._replaced = 0
        return replaced

    def _distinct(self, longest: int) -> int:
        """Bad samples of all ranks; none has more than `longest`."""
        ids = torch.full((longest,), -1, device=self._context.device)
        own = self._bad_samples.ids()
        ids[: len(own)] = torch.from_numpy(own).to(ids)
        return int((self._context.all_gather(ids).unique() >= 0).sum())

    def undecodable(
        self, split: Split, rows: NDArray[np.int64], progress: Callable[[int, int], None]
    ) -> NDArray[np.int64]:
        """Those of some rows that do not decode, on every rank; each rank decodes its share.

        Calls `progress(done, total)` for this rank's share.
        """
        rank, world = self._context.rank, self._context.world_size
        places = range(rank, len(rows), world)
        bad = torch.zeros(len(rows), dtype=torch.int64, device=self._context.device)
        for done, place in enumerate(places):
            progress(done, len(places))
            try:
                decode_row(split, int(rows[place]))
            except BadSampleError as error:
                bad[place] = 1
                self.report(error.sample)
        return rows[self._context.sum(bad).cpu().numpy() > 0]
