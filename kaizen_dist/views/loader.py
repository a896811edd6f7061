"""Batches of one rank, from any step, made ahead of need.

A `Loader` holds no position: `batch(epoch, step)` is a pure function, and `batches` merely
asks for the coming steps early, on threads (DALI, Pillow and torch release the interpreter
lock while they decode and compute). What makes the views is a `Backend`; its errors, which
know a place in a batch, get the names of shard and sample here.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.errors import DataError
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split
from kaizen_dist.views import recipe, tensor
from kaizen_dist.views.backend import CPU, Backend, UndecodableError, open_backend

Place = tuple[Split, int]
"""A split and a row of it: where an encoded image lies."""


@dataclass(frozen=True)
class Batch:
    """A rank's part of a step, lane by lane; n images."""

    views: Tensor
    """[2, n, 3, size, size] float32, normalised, on the device of the loader."""
    labels: Tensor
    """[n] int64; -1 = unlabelled."""
    ids: NDArray[np.int64]
    """[n] sample ids."""
    task_images: int
    """How many of the n are of the task; the others are replayed."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on a device, its views in a floating-point type."""
        views = self.views.to(device, dtype, non_blocking=True)
        return Batch(views, self.labels.to(device, non_blocking=True), self.ids, self.task_images)


@dataclass(frozen=True)
class Samples:
    """The samples of a step before their pixels are touched; arrays of shape [n]."""

    rows: list[tuple[int, int]]
    """(task, row in `Loader.splits[task]`)"""
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    replay: NDArray[np.bool_]
    parameters: tuple[recipe.ViewParameters, recipe.ViewParameters]


class Loader:
    """Batches for some lanes of one task's order.

    `splits` maps the task to its training split and every past task to its part of the
    replay store. `device` is where the views are to lie.
    """

    def __init__(
        self,
        order: Order,
        splits: Mapping[int, Split],
        config: ViewsConfig,
        lanes: Sequence[int] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.order = order
        self.splits = splits
        self.config = config
        self.lanes = lanes
        self.device = device

    @cached_property
    def backend(self) -> Backend:
        """Opened at the first batch: who only asks for `samples` needs none."""
        return open_backend(self.config, self.device)

    def samples(self, epoch: int, step: int) -> Samples:
        """Which samples a step takes, and the parameters of their two views."""
        picks = self.order.picks(epoch, step, self.lanes)
        rows = list(zip(picks.task.tolist(), picks.row.tolist(), strict=True))
        entries = np.array([self.splits[t].index[r] for t, r in rows])
        ids = entries["id"].astype(np.int64)
        first, second = (
            recipe.draw(
                self.config,
                self.order.seed,
                self.order.task,
                view,
                ids,
                picks.draw,
                entries["height"],
                entries["width"],
            )
            for view in (0, 1)
        )
        labels = entries["label"].astype(np.int64)
        return Samples(rows, ids, labels, picks.replay, (first, second))

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step.

        Raises:
            DataError: naming the shard and the sample that cannot be read or decoded.
        """
        samples = self.samples(epoch, step)
        places = [(self.splits[task], row) for task, row in samples.rows]
        encoded = [split.read(row) for split, row in places]
        try:
            views = self.backend.views(encoded, samples.parameters)
        except UndecodableError as error:
            raise _named(*places[error.position], error.reason) from None
        return Batch(
            views=views,
            labels=torch.from_numpy(samples.labels),
            ids=samples.ids,
            task_images=int((~samples.replay).sum()),
        )

    def batches(self, steps: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """The batches of the given (epoch, step)s in order, `prefetch` of them ahead."""
        coming = iter(steps)
        pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="views")
        try:
            ahead: deque[Future[Batch]] = deque()
            while True:
                while len(ahead) < max(self.config.prefetch, self.config.workers):
                    where = next(coming, None)
                    if where is None:
                        break
                    ahead.append(pool.submit(self.batch, *where))
                if not ahead:
                    return
                batch = ahead.popleft().result()
                if batch.views.is_cuda:
                    # Made on another stream: its memory must outlive what this one does with it.
                    batch.views.record_stream(torch.cuda.current_stream(batch.views.device))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def centre_views(backend: Backend, places: Sequence[Place]) -> Tensor:
    """The plain view for evaluation of n images, [n, 3, size, size] float32.

    Raises:
        DataError: naming the shard and the sample that cannot be read or decoded.
    """
    encoded = [split.read(row) for split, row in places]
    try:
        return backend.centre_views(encoded)
    except UndecodableError as error:
        raise _named(*places[error.position], error.reason) from None


def decode_row(split: Split, row: int) -> Image.Image:
    """The decoded image of one row of a split.

    Raises:
        DataError: naming the shard and the key of an image that cannot be decoded.
    """
    encoded = split.read(row)
    try:
        return tensor.decode(encoded)
    except OSError as error:
        raise _named(split, row, str(error)) from None


def _named(split: Split, row: int, reason: str) -> DataError:
    entry = split.index[row]
    return DataError(
        f"{split.shards[entry['shard']]}: image {entry['id']:012d} cannot be decoded "
        f"({reason}); `kaizen-dist verify --decode` lists all such images"
    )
