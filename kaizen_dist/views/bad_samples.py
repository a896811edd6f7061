"""Samples that do not decode: their names, how many are tolerated, and their replacements.

A sample is bad if its bytes do not decode whole, or to another size than its index says;
Pillow decides, with every backend (dali_backend.py says how).

A bad sample is replaced by the next one of its lane: the first good one of those that the
lane serves after the step's own, the second bad one in the lane by the second, and so on. Task
samples are replaced along the epoch's permutation, from its end on from its beginning; replayed
ones by what is replayed from the lane's place in the next step on. That depends on the stream and
(seed, task, epoch, step) only: the samples that are known to be bad decide how soon the replacement
is found, not which it is.

A sample that decodes is taken as it is. Training does not see damage that leaves an image
decodable: that takes checksums, and `kaizen-dist verify` compares those of all shards.
"""

import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.common import console
from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.order import Order, Picks
from kaizen_dist.stream.shards import Split
from kaizen_dist.views import eval_view

Row = tuple[int, int]
"""(task, row in that task's split), as in `Picks`."""

_AT_ONCE = 16
_SHOWN = 20


@dataclass(frozen=True)
class BadSample:
    """A sample that does not decode."""

    where: str
    """Its shard and key."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where} does not decode ({self.reason})"

    def warning(self) -> str:
        """The warning while training and evaluating."""
        return f"{self}; another takes its place"


class BadSampleError(DataError):
    """A sample does not decode, and no other can take its place."""

    def __init__(self, sample: BadSample) -> None:
        super().__init__(f"{sample}; `kaizen-dist verify --decode` lists all such images")
        self.sample = sample


def warn(sample: BadSample) -> None:
    """Name a bad sample on standard error."""
    console.warn(sample.warning())


class BadSamples:
    """The distinct bad samples that a rank has met in a task; safe to be used by threads."""

    def __init__(self, splits: Mapping[int, Split], max_bad: float) -> None:
        self._splits = splits
        self._images = sum(len(split) for split in splits.values())
        self._max_bad = max_bad
        self._found: dict[Row, BadSample] = {}
        self._lock = threading.Lock()

    def __contains__(self, row: object) -> bool:
        return row in self._found

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, row: Row) -> BadSample:
        return self._found[row]

    def found(self) -> list[BadSample]:
        """All, in the order in which they were met."""
        with self._lock:
            return list(self._found.values())

    def ids(self) -> NDArray[np.int64]:
        """[len] the ids of all."""
        with self._lock:
            rows = list(self._found)
        return np.array([self._splits[t].index[row]["id"] for t, row in rows], dtype=np.int64)

    def add(self, reasons: Mapping[Row, str]) -> None:
        """Record that these samples are bad.

        Raises:
            DataError: naming all, when they are more than `views.max_bad` allows.
        """
        with self._lock:
            for (task, row), reason in reasons.items():
                sample = BadSample(self._splits[task].where(row), reason)
                self._found.setdefault((task, row), sample)
        self.check(len(self))

    def too_many(self, bad: int) -> bool:
        """Whether this number is more than `views.max_bad` allows."""
        return bad > self._max_bad * self._images

    def check(self, bad: int) -> None:
        """Raises DataError if `bad` distinct bad samples, of all ranks, are too many."""
        if not self.too_many(bad):
            return
        own = self.found()
        listed = "".join(f"\n  {sample}" for sample in own[:_SHOWN])
        if len(own) < bad:
            listed += f"\n  {bad - len(own)} were met by other ranks"
        elif len(own) > _SHOWN:
            listed += f"\n  and {len(own) - _SHOWN} more"
        raise DataError(
            f"{bad} of {self._images:,} training images do not decode, more than the share of "
            f"views.max_bad={self._max_bad:g}:{listed}\n`kaizen-dist verify --decode` lists all; "
            "restore the files, or raise views.max_bad to go on without them"
        )


def replace_bad(
    order: Order, epoch: int, step: int, lanes: Sequence[int] | None, bad: Container[Row]
) -> tuple[Picks, list[Row]]:
    """`order.picks` with good samples in place of bad ones, and those replaced in batch order.

    Raises:
        DataError: if a lane has no good sample.
    """
    picks = order.picks(epoch, step, lanes)
    wanted = list(zip(picks.task.tolist(), picks.row.tolist(), strict=True))
    slots = [slot for slot, row in enumerate(wanted) if row in bad]
    if not slots:
        return picks, []
    served = range(order.lanes) if lanes is None else lanes
    in_a_lane = len(picks) // len(served)
    changed = replace(picks, task=picks.task.copy(), row=picks.row.copy(), draw=picks.draw.copy())
    following: dict[tuple[int, bool], Iterator[tuple[int, int, int]]] = {}
    for slot in slots:
        source = served[slot // in_a_lane], bool(picks.replay[slot])
        if source not in following:
            following[source] = _good_ones(order, epoch, step, *source, bad)
        changed.task[slot], changed.row[slot], changed.draw[slot] = next(following[source])
    return changed, [wanted[slot] for slot in slots]


def _good_ones(
    order: Order, epoch: int, step: int, lane: int, replay: bool, bad: Container[Row]
) -> Iterator[tuple[int, int, int]]:
    """(task, row, draw) of the good samples that follow a step's own in a lane."""
    # As many in a row as this show the lane once, in two rounds of replay at the latest.
    most = 2 * sum(order.replay_sizes) if replay else order.size
    since_good = 0
    for begin in count(0, _AT_ONCE):
        numbers = np.arange(begin, begin + _AT_ONCE)
        picks = order.following(epoch, step, lane, replay, numbers)
        columns = (a.tolist() for a in (picks.task, picks.row, picks.draw))
        for task, row, draw in zip(*columns, strict=True):
            since_good = since_good + 1 if (task, row) in bad else 0
            if since_good == 0:
                yield task, row, draw
        if since_good >= most:
            kind = "replayed image" if replay else "image"
            raise DataError(
                f"task {order.task}: no {kind} of lane {lane} decodes; "
                "`kaizen-dist verify --decode` lists what is damaged"
            )


def decode_row(split: Split, row: int) -> Image.Image:
    """The decoded image of a row.

    Raises:
        BadSampleError: if it does not decode, or to another size than its index says.
        DataError: naming the shard that cannot be read.
    """
    encoded, entry = split.read(row), split.index[row]
    try:
        return eval_view.decode(encoded, (int(entry["height"]), int(entry["width"])))
    except OSError as error:
        raise BadSampleError(BadSample(split.where(row), str(error))) from None
