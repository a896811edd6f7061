"""Prefetching: the shards that the coming steps need, fetched while earlier steps are trained.

The order alone determines the shards of a step, so a few threads fetch them into the node's cache
ahead of the loader, in the order in which the lanes of this rank first ask for them. Nothing
depends on it: a shard that is missing when it is needed is fetched then.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split

LOOK_AHEAD = 32
"""Steps; a lane asks for its shards in random order, so that these soon name nearly all."""
_FETCHERS = 4

Step = tuple[int, int]
"""(epoch, step)"""


def fetch_ahead(
    order: Order, splits: Mapping[int, Split], lanes: Sequence[int] | None, steps: Iterable[Step]
) -> Iterator[Step]:
    """Passes `steps` on as they are asked for, and fetches the shards of the next `LOOK_AHEAD`.

    `splits` are those of the loader: by task, the past ones in the replay store. Where none of
    them is remote, it only passes steps on.
    """
    coming = iter(steps)
    if not any(split.remote for split in splits.values()):
        yield from coming
        return
    fetcher = _Fetcher()
    try:
        ahead = deque(islice(coming, LOOK_AHEAD))
        for step in ahead:
            fetcher.want(_shards(order, splits, lanes, step))
        while ahead:
            yield ahead.popleft()
            for step in islice(coming, 1):
                fetcher.want(_shards(order, splits, lanes, step))
                ahead.append(step)
    finally:
        fetcher.stop()


def _shards(
    order: Order, splits: Mapping[int, Split], lanes: Sequence[int] | None, step: Step
) -> list[tuple[Split, int]]:
    """The shards of a step's samples, in the order of the batch, each once."""
    picks = order.picks(*step, lanes)
    rows = zip(picks.task.tolist(), picks.row.tolist(), strict=True)
    places = [(splits[task], row) for task, row in rows if splits[task].remote]
    return list(dict.fromkeys((split, split.shard_of(row)) for split, row in places))


class _Fetcher:
    """Threads that fetch shards in the order asked for, none of them twice at a time."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Split, int] | None] = queue.SimpleQueue()
        self._under_way: set[tuple[Split, int]] = set()
        self._stopped = threading.Event()
        for _ in range(_FETCHERS):
            # A daemon: the end of the program does not wait for it.
            threading.Thread(target=self._run, name="fetch ahead", daemon=True).start()

    def want(self, shards: Iterable[tuple[Split, int]]) -> None:
        for shard in shards:
            split, number = shard
            if shard not in self._under_way and not split.is_ready(number):
                self._under_way.add(shard)
                self._wanted.put(shard)

    def stop(self) -> None:
        self._stopped.set()
        for _ in range(_FETCHERS):
            self._wanted.put(None)

    def _run(self) -> None:
        while (shard := self._wanted.get()) is not None and not self._stopped.is_set():
            split, number = shard
            # The loader gets the same error, and can name the sample.
            with suppress(Exception):
                split.fetch(number)
            self._under_way.discard(shard)
