"""Promise 1 for replay: which kept images a step draws, a pure function of its place in the task.

The images kept of all past tasks are numbered through. `EvenReplay` goes through them in rounds:
each draws every image once. Over a batch, an epoch, and a task up to any step, the counts of two
images therefore differ by at most one, whatever the lanes and the numbers kept.

`LaneReplay` is the order of earlier versions, which runs that began with it keep. It cuts each past
task over the lanes, and each lane goes through its own part in rounds: where parts are of unequal
size, or lent to several lanes, images are drawn unequally often.

Nothing here has a state or costs memory or time that grows with images, steps or epochs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from kaizen_dist.common import rng

Drawn = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Past task, row in its part of the replay store, and round, all of shape [lanes, n]."""


@dataclass(frozen=True)
class ReplayOrder(ABC):
    """The order in which a task replays."""

    seed: int
    task: int
    kept: tuple[int, ...]
    """Images kept of each past task; not all 0."""
    batch_size: int
    """Replayed images of a step."""
    lanes: int
    steps_per_epoch: int

    @abstractmethod
    def draw(self, step: int, taken: NDArray[np.int64], lane: NDArray[np.int64]) -> Drawn:
        """The `taken`-th draws [n] of some lanes [lanes] from a step of the task on; those of the
        step itself come first, and what follows may take the place of one that does not decode."""

    @abstractmethod
    def rows(self, lane: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """The rows, ascending, that some lanes ever draw, by past task."""


@dataclass(frozen=True)
class EvenReplay(ReplayOrder):
    """Rounds through all kept images, over the whole batch; the lanes take equal parts of it.

    Two orders that have nothing to do with each other would, where a batch or an epoch takes the
    end of one round and the beginning of the next, draw an image twice and leave another out. So
    the task has one order of all images. An epoch turns it by a random number of places, each part
    between the places of a round where the epoch begins and ends by itself, and a round shuffles
    that afresh within the batches that lie wholly in it.
    """

    @override
    def draw(self, step: int, taken: NDArray[np.int64], lane: NDArray[np.int64]) -> Drawn:
        own = self.batch_size // self.lanes
        # After its own draws of the step, a lane goes on from its place in the next one.
        later = np.where(taken < own, 0, self.batch_size - own)
        position = step * self.batch_size + lane[:, None] * own + taken + later
        kept = np.asarray(self.kept, dtype=np.int64)
        until = np.cumsum(kept)
        image = self._image(position, int(until[-1]))
        past = np.searchsorted(until, image, side="right").astype(np.int64)
        return past, image - (until - kept)[past], position // until[-1]

    @override
    def rows(self, lane: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        return {task: np.arange(kept) for task, kept in enumerate(self.kept)}

    def _image(self, position: NDArray[np.int64], images: int) -> NDArray[np.int64]:
        """The numbers of the images that the task's draws at some positions, counted from 0, are
        of; of any shape."""
        drawn = self.batch_size * self.steps_per_epoch
        turn, epoch = position // images, position // drawn
        # The batches of this epoch that lie wholly in this round.
        begin = np.maximum(turn * images, epoch * drawn)
        stop = np.minimum((turn + 1) * images, (epoch + 1) * drawn)
        begin, stop = -(-begin // self.batch_size), stop // self.batch_size
        batch = position // self.batch_size
        whole = (begin <= batch) & (batch < stop)
        start = np.where(whole, begin * self.batch_size, position)
        end = np.where(whole, stop * self.batch_size, position + 1)
        key = rng.key("replay round", self.seed, self.task)
        place = (start + rng.permute(key, position - start, end - start, turn)) % images

        first, last = np.sort([epoch * drawn % images, (epoch + 1) * drawn % images], axis=0)
        start = np.where(place < first, 0, np.where(place < last, first, last))
        end = np.where(place < first, first, np.where(place < last, last, images))
        key = rng.key("replay epoch", self.seed, self.task)
        place = start + (place - start + rng.words(key, epoch)[..., 0]) % (end - start)
        return rng.permute(rng.key("replay task", self.seed, self.task), place, images)


@dataclass(frozen=True)
class LaneReplay(ReplayOrder):
    """Each lane goes round its own share of every past task."""

    @override
    def draw(self, step: int, taken: NDArray[np.int64], lane: NDArray[np.int64]) -> Drawn:
        start, end = self._share(lane[:, None])
        until = np.cumsum(end - start, axis=1)
        total = until[:, -1:]

        drawn = step * (self.batch_size // self.lanes) + taken
        # Rounds are numbered apart by lane: lanes that share an image give it different views.
        turn = (drawn // total) * self.lanes + lane[:, None]
        key = rng.key("replay order", self.seed, self.task)
        slot = rng.permute(key, drawn % total, total, turn)

        past = (slot[:, :, None] >= until[:, None, :]).sum(axis=2)
        row = slot - np.take_along_axis(until - (end - start) - start, past, axis=1)
        return past, row, turn

    @override
    def rows(self, lane: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        shares = zip(*(bounds.T for bounds in self._share(lane[:, None])), strict=True)
        return {
            task: np.unique(np.concatenate([np.arange(a, b) for a, b in zip(*share, strict=True)]))
            for task, share in enumerate(shares)
        }

    def _share(self, lane: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From where to where lanes [lanes, 1] replay each past task, [lanes, tasks]."""
        kept = np.asarray(self.kept, dtype=np.int64)
        start = kept * lane // self.lanes
        # A task that keeps fewer images than there are lanes lends each to several lanes.
        end = np.maximum(kept * (lane + 1) // self.lanes, start + 1)
        return start, np.where(kept > 0, end, start)


VERSIONS: Final[Mapping[int, type[ReplayOrder]]] = {1: LaneReplay, 2: EvenReplay}
NEWEST: Final = 2
"""Version of the order in which a new run replays."""
