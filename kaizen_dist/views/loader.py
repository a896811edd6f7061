"""Batches of one rank, from any step, made ahead of need.

A `Loader` holds no position: `batch(epoch, step)` is a pure function, and `batches` merely
asks for the coming steps early, on threads (DALI, Pillow and torch release the interpreter
lock while they decode and compute). What makes the views is a `Backend`; what it cannot decode
is replaced as `faults.py` says, until the batch is whole.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.threads import once, thread_setup
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.index import INDEX, UNLABELLED
from kaizen_dist.stream.order import Order, Picks
from kaizen_dist.stream.shards import Split
from kaizen_dist.views import eval_view, out_of_memory, recipe
from kaizen_dist.views.backend import (
    CPU,
    Backend,
    UndecodableError,
    open_backend,
    used_here,
    wrong_size,
)
from kaizen_dist.views.bad_samples import Fault, Faults, Row, mended
from kaizen_dist.views.image_cache import GIGABYTE, DecodedImages, decoded_bytes

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
    replaced: tuple[Fault, ...] = ()
    """The samples of the order that do not decode, in batch order: others are in their places."""

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
    parameters: tuple[recipe.ViewParameters, recipe.ViewParameters]
    replaced: tuple[Fault, ...]
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
        self.faults = Faults(splits, config.max_bad)
        """The bad samples met so far."""

    @once
    def backend(self) -> Backend:
        """Opened at the first batch: who only asks for `samples` needs none."""
        return open_backend(self.config, self.device)

    @once
    def decoded(self) -> DecodedImages | None:
        """Where images stay decoded, if those of the lanes fit `views.memory_budget`."""
        budget = self.config.memory_budget * GIGABYTE
        fits = budget > 0 and decoded_bytes(self.order, self.splits, self.lanes) <= budget
        return DecodedImages(self.splits) if fits else None

    def samples(self, epoch: int, step: int) -> Samples:
        """Which samples a step takes, and the parameters of their two views."""
        picks, replaced = mended(self.order, epoch, step, self.lanes, self.faults)
        rows = list(zip(picks.task.tolist(), picks.row.tolist(), strict=True))
        entries = self._entries(picks)
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
        return Samples(
            rows=rows,
            ids=ids,
            labels=entries["label"].astype(np.int64),
            replay=picks.replay,
            sizes=np.stack([entries["height"], entries["width"]], axis=1).astype(np.int64),
            parameters=(first, second),
            replaced=tuple(self.faults[row] for row in replaced),
        )

    def _entries(self, picks: Picks) -> NDArray[Any]:
        """The INDEX rows [n] of picked samples: one read for each task they are of."""
        entries = np.empty(len(picks), INDEX)
        for task in np.unique(picks.task):
            mine = picks.task == task
            entries[mine] = self.splits[int(task)].index[picks.row[mine]]
        return entries

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
                with out_of_memory.named("train.batch_size"):
                    views = self._views(samples)
            except UndecodableError as error:
                # Every turn finds one at least that was not known, so there is a last one.
                self.faults.add({samples.rows[i]: why for i, why in error.reasons.items()})
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
        if self.decoded is not None:
            pixels = self.decoded.of(self.backend, samples.rows, samples.sizes)
            return self.backend.views_of(pixels, samples.parameters)
        encoded = self._encoded(samples.rows)
        return self.backend.views(encoded, samples.sizes, samples.parameters)

    def _encoded(self, rows: Sequence[tuple[int, int]]) -> list[bytes]:
        """The images of (task, row)s as they lie in the shards."""
        images = [b""] * len(rows)
        by_task: dict[int, list[int]] = {}
        for place, (task, _) in enumerate(rows):
            by_task.setdefault(task, []).append(place)
        for task, places in by_task.items():
            found = self.splits[task].read_all([rows[place][1] for place in places])
            for place, image in zip(places, found, strict=True):
                images[place] = image
        return images

    def batches(self, steps: Iterable[tuple[int, int]]) -> Iterator[Batch]:
        """The batches of the given (epoch, step)s in order, `prefetch` of them ahead."""
        coming = iter(steps)
        pool = ThreadPoolExecutor(self.config.workers, "views", thread_setup(self.device))
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
                used_here(batch.views)
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def centre_views(
    backend: Backend, places: Sequence[Place], tell: Callable[[Fault], None]
) -> tuple[Tensor, list[Place]]:
    """The plain view for evaluation of n images, [n, 3, size, size] float32, and whose they are.

    In place of a training image that does not decode comes the next of its split that does (a
    labelled one for a labelled one), and `tell` is told. The held-out images measure, so all of
    them are needed.

    Raises:
        DataError: naming the shard and the sample that cannot be read or decoded.
        KaizenError: if there is too little memory, naming the keys that need less.
    """
    served = list(places)
    while True:
        encoded = [split.read(row) for split, row in served]
        try:
            with out_of_memory.named("eval.batch_size"):
                return backend.centre_views(encoded), served
        except UndecodableError as error:
            for i, reason in error.reasons.items():
                split, row = served[i]
                if split.part == "val":
                    raise _named(split, row, reason) from None
                tell(Fault(split.where(row), reason))
                served[i] = split, _next_alike(split, row)
                if served[i] == places[i]:
                    raise _named(split, row, "nor does any other of the split") from None


def _next_alike(split: Split, row: int) -> int:
    """The next row of a split, cyclically, that is labelled if this one is."""
    labelled = split.index[row]["label"] != UNLABELLED
    while True:
        row = (row + 1) % len(split)
        if (split.index[row]["label"] != UNLABELLED) == labelled:
            return row


def undecodable(split: Split, row: int) -> Fault | None:
    """What is wrong with a row's image, if it does not decode, or to another size than indexed.

    Raises:
        DataError: naming the shard that cannot be read.
    """
    encoded, entry = split.read(row), split.index[row]
    try:
        image = eval_view.decode(encoded)
    except OSError as error:
        return Fault(split.where(row), str(error))
    said = int(entry["height"]), int(entry["width"])
    if said != (size := (image.height, image.width)):
        return Fault(split.where(row), wrong_size(said, size))
    return None


def decode_row(split: Split, row: int) -> Image.Image:
    """The decoded image of one row of a split.

    Raises:
        DataError: naming the shard and the key of an image that cannot be decoded.
    """
    encoded = split.read(row)
    try:
        return eval_view.decode(encoded)
    except OSError as error:
        raise _named(split, row, str(error)) from None


def _named(split: Split, row: int, reason: str) -> DataError:
    fault = Fault(split.where(row), reason)
    return DataError(f"{fault}; `kaizen-dist verify --decode` lists all such images")
