"""Batches of one rank, from any step, made ahead of need.

A `Loader` holds no position: `batch(epoch, step)` is a pure function, and `batches` merely
makes those of the coming steps early, on threads (DALI, Pillow and torch release the interpreter
lock while they decode and compute). A `Backend` makes the views; samples that it cannot decode
are replaced (bad_samples.py) until the batch is whole.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.common.threads import once, thread_setup
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.index import INDEX, UNLABELLED
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split
from kaizen_dist.views import recipe
from kaizen_dist.views.backend import (
    CPU,
    Backend,
    UndecodableError,
    explain_out_of_memory,
    record_stream,
)
from kaizen_dist.views.bad_samples import BadSample, BadSampleError, BadSamples, Row, replace_bad
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.image_cache import GIGABYTE, ImageCache, decoded_bytes, read_rows

SplitRow = tuple[Split, int]
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
    replaced: tuple[BadSample, ...] = ()
    """The samples of the order that do not decode, in batch order: others replace them."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on a device, its views in a floating-point type."""
        views = self.views.to(device, dtype, non_blocking=True)
        return replace(self, views=views, labels=self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class Samples:
    """The samples of a step before their pixels are touched; arrays of shape [n]."""

    rows: list[Row]
    """(task, row in `Loader.splits[task]`)"""
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    replay: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    """[n, 2]: height and width of the stored image."""
    parameters: recipe.Parameters
    replaced: tuple[BadSample, ...]
    """As in `Batch`, of those known so far."""


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
        self.bad_samples = BadSamples(splits, config.max_bad)
        """Those met so far."""

    @once
    def backend(self) -> Backend:
        """Opened at the first batch: `samples` alone need none."""
        return open_backend(self.config, self.device)

    @once
    def cache(self) -> ImageCache | None:
        """The cache of decoded images, if those of the lanes fit `views.memory_budget`."""
        budget = self.config.memory_budget * GIGABYTE
        fits = budget > 0 and decoded_bytes(self.order, self.splits, self.lanes) <= budget
        return ImageCache(self.splits) if fits else None

    def samples(self, epoch: int, step: int) -> Samples:
        """The samples that a step takes, and the parameters of their two views."""
        order = self.order
        picks, replaced = replace_bad(order, epoch, step, self.lanes, self.bad_samples)
        # One read of the index for each task that samples are of.
        entries = np.empty(len(picks), INDEX)
        for task in np.unique(picks.task):
            mine = picks.task == task
            entries[mine] = self.splits[int(task)].index[picks.row[mine]]
        ids, height, width = (entries[name].astype(np.int64) for name in ("id", "height", "width"))
        first, second = (
            recipe.draw(self.config, order.seed, order.task, v, ids, picks.draw, height, width)
            for v in (0, 1)
        )
        return Samples(
            rows=list(zip(picks.task.tolist(), picks.row.tolist(), strict=True)),
            ids=ids,
            labels=entries["label"].astype(np.int64),
            replay=picks.replay,
            sizes=np.stack([height, width], axis=1),
            parameters=(first, second),
            replaced=tuple(self.bad_samples[row] for row in replaced),
        )

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of a step.

        Raises:
            DataError: naming the shard that cannot be read, or the samples that do not decode
                where they are more than `views.max_bad` of all.
            KaizenError: if there is too little memory, naming the keys that need less.
        """
        while True:
            samples = self.samples(epoch, step)
            try:
                with explain_out_of_memory("train.batch_size"):
                    views = self._views(samples)
            except UndecodableError as error:
                # Each iteration finds at least one that was not known, so there is a last one.
                self.bad_samples.add({samples.rows[i]: why for i, why in error.reasons.items()})
                continue
            labels = torch.from_numpy(samples.labels)
            return Batch(
                views=views,
                labels=labels.pin_memory() if views.is_cuda else labels,
                ids=samples.ids,
                task_images=int((~samples.replay).sum()),
                replaced=samples.replaced,
            )

    def _views(self, samples: Samples) -> Tensor:
        if self.cache is not None:
            pixels = self.cache.pixels(self.backend, samples.rows, samples.sizes)
            return self.backend.views_of(pixels, samples.parameters)
        encoded = read_rows(self.splits, samples.rows)
        return self.backend.views(encoded, samples.sizes, samples.parameters)

    def batches(self, steps: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """The batches of the given (epoch, step)s in order, `prefetch` of them ahead."""
        coming = iter(steps)
        pool = ThreadPoolExecutor(self.config.workers, "views", thread_setup(self.device))
        try:
            ahead: deque[Future[Batch]] = deque()
            while True:
                free = max(self.config.prefetch, self.config.workers) - len(ahead)
                ahead += [pool.submit(self.batch, *step) for step in islice(coming, free)]
                if not ahead:
                    return
                batch = ahead.popleft().result()
                record_stream(batch.views)
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def centre_views(
    backend: Backend, rows: Sequence[SplitRow], tell: Callable[[BadSample], None]
) -> tuple[Tensor, list[SplitRow]]:
    """The evaluation views of n images, [n, 3, size, size] float32, and the rows they are of.

    A training image that does not decode is replaced by the next of its split that does (a
    labelled one by a labelled one) and passed to `tell`. The held-out images measure: all of
    them are needed.

    Raises:
        DataError: naming the shard and the sample that cannot be read or decoded.
        KaizenError: if there is too little memory, naming the keys that need less.
    """
    served = list(rows)
    while True:
        encoded = [split.read(row) for split, row in served]
        try:
            with explain_out_of_memory("eval.batch_size"):
                return backend.centre_views(encoded), served
        except UndecodableError as error:
            for i, reason in error.reasons.items():
                split, row = served[i]
                sample = BadSample(split.where(row), reason)
                if split.part == "val":
                    raise BadSampleError(sample) from None
                tell(sample)
                served[i] = split, _next_alike(split, row)
                if served[i] == rows[i]:
                    raise BadSampleError(
                        replace(sample, reason="nor does any other of the split")
                    ) from None


def _next_alike(split: Split, row: int) -> int:
    """The next row of a split, cyclically, that is labelled if this one is."""
    alike = np.flatnonzero((split.labels == UNLABELLED) == (split.labels[row] == UNLABELLED))
    return int(alike[(np.searchsorted(alike, row) + 1) % len(alike)])
