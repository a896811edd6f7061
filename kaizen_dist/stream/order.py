"""Promise 1: which samples a step takes, as a pure function of (seed, task, epoch, step).

A task's index is cut into `lanes` contiguous ranges. Every step takes the same number of
samples from every lane, in an order that each epoch draws afresh for each lane, so each
sample comes at most once an epoch and what does not fill a step differs from epoch to
epoch. What a step replays, of all that is kept, is shared out to the lanes (replay_order.py).

A rank serves whole lanes, `lanes / world_size` of them, so it reads its own ranges of the task
only, and every world size that divides `lanes` sees the same global batches, in the same order:
lane by lane, each lane's task samples before its replayed ones. For example, with 4 lanes, batch
8 and replay batch 4 on two ranks:

    rank 0                                  rank 1
    lane 0: t t r   lane 1: t t r           lane 2: t t r   lane 3: t t r

Nothing here has a state, reads a file or costs memory that grows with the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.common.errors import UsageError
from kaizen_dist.stream.replay_order import NEWEST, VERSIONS, ReplayOrder


@dataclass(frozen=True)
class Picks:
    """The samples of one step, for some lanes, in batch order; all arrays have shape [n]."""

    task: NDArray[np.int64]
    """The task a sample was first seen in; past ones are read from the replay store."""
    row: NDArray[np.int64]
    """Its row in that task's training index, or in that task's part of the replay store."""
    draw: NDArray[np.int64]
    """Its epoch or round of replay: the counter that makes its views fresh."""
    replay: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Order:
    """The order of one task.

    Raises:
        UsageError: if a lane holds less than its part of one step.
    """

    seed: int
    task: int
    size: int
    """Training samples of the task."""
    batch_size: int
    lanes: int
    replay_sizes: tuple[int, ...] = ()
    """Images kept of each past task; empty = no replay."""
    replay_batch_size: int = 0
    replay_order: int = NEWEST
    """A version in `replay_order.VERSIONS`."""

    def __post_init__(self) -> None:
        if self.batch_size % self.lanes or self.replay_batch_size % self.lanes:
            raise UsageError(
                f"lanes: {self.lanes} does not divide batch {self.batch_size} "
                f"and replay batch {self.replay_batch_size}"
            )
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"task {self.task} has {self.size} training images, too few for one step of "
                f"train.batch_size={self.batch_size} in {self.lanes} lanes; make the batch smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps that the smallest lane has samples for."""
        return (self.size // self.lanes) // (self.batch_size // self.lanes)

    @property
    def replay(self) -> ReplayOrder | None:
        """The order of what is replayed; None if nothing is."""
        if not (self.replay_batch_size and any(self.replay_sizes)):
            return None
        return VERSIONS[self.replay_order](
            seed=self.seed,
            task=self.task,
            kept=self.replay_sizes,
            batch_size=self.replay_batch_size,
            lanes=self.lanes,
            steps_per_epoch=self.steps_per_epoch,
        )

    def picks(self, epoch: int, step: int, lanes: Sequence[int] | None = None) -> Picks:
        """What `step` of `epoch` takes from `lanes` (all of them if None).

        Raises:
            IndexError: if the epoch has no such step.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"an epoch of task {self.task} has {self.steps_per_epoch} steps")
        lane = np.arange(self.lanes) if lanes is None else np.asarray(lanes, dtype=np.int64)
        taken = np.arange(self.batch_size // self.lanes)
        parts = [self._from_task(epoch, step, taken, lane)]
        if self.replay is not None:
            taken = np.arange(self.replay_batch_size // self.lanes)
            parts.append(self._from_replay(epoch, step, taken, lane))
        # Lane by lane: [lanes, task samples | replayed samples], flattened.
        columns = [
            np.concatenate(arrays, axis=1).reshape(-1) for arrays in zip(*parts, strict=True)
        ]
        task, row, draw, replay = columns
        return Picks(task, row, draw, replay.astype(bool))

    def following(
        self, epoch: int, step: int, lane: int, replay: bool, numbers: NDArray[np.int64]
    ) -> Picks:
        """What may replace a step's own samples of a lane: the `numbers`-th, from 0, shape [n].

        Those of the task come in the epoch's permutation, after its end from its beginning;
        replayed ones as `ReplayOrder.draw` says.
        """
        own = self.replay_batch_size if replay else self.batch_size
        taken, lanes = own // self.lanes + numbers, np.array([lane])
        source = self._from_replay if replay else self._from_task
        task, row, draw, replayed = (a[0] for a in source(epoch, step, taken, lanes))
        return Picks(task, row, draw, replayed.astype(bool))

    def lane_rows(self, lanes: Sequence[int] | None = None) -> dict[int, NDArray[np.int64]]:
        """The rows, ascending, that some lanes (all if None) ever take, by task as in `Picks`."""
        lane = np.arange(self.lanes) if lanes is None else np.asarray(lanes, dtype=np.int64)
        bounds = (_cut(self.size, self.lanes, lane + n).tolist() for n in (0, 1))
        own = [np.arange(start, end) for start, end in zip(*bounds, strict=True)]
        replayed = {} if self.replay is None else self.replay.rows(lane)
        return replayed | {self.task: np.unique(np.concatenate(own))}

    def _from_task(
        self, epoch: int, step: int, taken: NDArray[np.int64], lane: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        start = _cut(self.size, self.lanes, lane)
        length = _cut(self.size, self.lanes, lane + 1) - start
        position = (step * (self.batch_size // self.lanes) + taken) % length[:, None]
        key = rng.key("order", self.seed, self.task, epoch)
        row = start[:, None] + rng.permute(key, position, length[:, None], lane[:, None])
        return [
            np.full_like(row, self.task),
            row,
            np.full_like(row, epoch),
            np.zeros_like(row),
        ]

    def _from_replay(
        self, epoch: int, step: int, taken: NDArray[np.int64], lane: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        assert self.replay is not None
        past, row, draw = self.replay.draw(epoch * self.steps_per_epoch + step, taken, lane)
        return [past, row, draw, np.ones_like(row)]


def _cut(size: int, lanes: int, lane: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where a lane's contiguous range begins when `size` rows are cut over all lanes."""
    return np.asarray(size * lane // lanes)


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> range:
    """The whole lanes a rank serves.

    Raises:
        UsageError: naming the world sizes that fit.
    """
    if lanes % world_size:
        fits = [n for n in range(1, lanes + 1) if lanes % n == 0]
        raise UsageError(
            f"{lanes} lanes cannot be served by {world_size} ranks; world sizes that fit: "
            f"{', '.join(map(str, fits))} (lanes come from train.batch_size, replay.batch_size "
            "and train.lanes)"
        )
    each = lanes // world_size
    return range(rank * each, (rank + 1) * each)
