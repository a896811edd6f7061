"""What a step would see, without training: the global batch's samples and their two views.

The batch is put together rank by rank, as the ranks of a run would make it, so that what is
printed shows (and does not merely claim) that the world size does not matter.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kaizen_dist.common.fonts import file_for, legible
from kaizen_dist.config import Config
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay import choose
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import decode_row
from kaizen_dist.views.loader import Loader, Samples
from kaizen_dist.views.torch_backend import make_views

_CELL, _GAP, _CAPTION, _MARGIN, _LETTERS = 96, 6, 16, 16, 10
_COLOURS = ("#0a7d5c", "#b8472a")
"""The first and the second view's crop windows."""


@dataclass(frozen=True)
class Step:
    """One step's global batch in lane order, n samples."""

    loader: Loader
    ranks: list[Samples]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    replay: NDArray[np.bool_]
    steps_per_epoch: int

    @property
    def digest(self) -> str:
        """sha256 over ids and every augmentation parameter."""
        content = hashlib.sha256(self.ids.tobytes())
        for view in (0, 1):
            for field in ("crop", "colour", "contrast", "blur", "solarise", "flip"):
                columns = [getattr(samples.parameters[view], field) for samples in self.ranks]
                content.update(np.concatenate(columns).tobytes())
        return content.hexdigest()


def step_of(
    config: Config, stream: Stream, task: int, epoch: int, step: int, world_size: int
) -> Step:
    """The samples and view parameters of a step, gathered from `world_size` ranks.

    Raises:
        UsageError: if the world size does not fit the lanes, or the replayed images depend on
            a trained model (replay.select=herding).
        IndexError: if the epoch has no such step.
    """
    order, splits = order_of(config, stream, task)
    ranks = []
    for rank in range(world_size):
        lanes = lanes_of_rank(config.lanes, rank, world_size)
        loader = Loader(order, splits, config.views, lanes)
        ranks.append(loader.samples(epoch, step))
    return Step(
        loader=loader,
        ranks=ranks,
        ids=np.concatenate([samples.ids for samples in ranks]),
        labels=np.concatenate([samples.labels for samples in ranks]),
        replay=np.concatenate([samples.replay for samples in ranks]),
        steps_per_epoch=order.steps_per_epoch,
    )


def order_of(config: Config, stream: Stream, task: int) -> tuple[Order, dict[int, Split]]:
    """The order of a run's task, and the images by task: its own, and those it would have kept of
    the tasks before.

    Raises:
        UsageError: if those depend on a trained model (replay.select=herding).
    """
    seed, replay = config.train.seed, config.replay
    splits = {task: stream.split(task, "train")}
    for past in range(task) if replay.fraction > 0 else ():
        whole = stream.split(past, "train")
        rows = choose(whole, replay.fraction, replay.select, seed, past)
        splits[past] = whole.take(rows)
    order = Order(
        seed=seed,
        task=task,
        size=len(splits[task]),
        batch_size=config.train.batch_size,
        lanes=config.lanes,
        replay_sizes=tuple(len(splits[t]) for t in range(task) if t in splits),
        replay_batch_size=replay.batch_size,
    )
    return order, splits


def usual_batch(images: int, lanes: int) -> int:
    """A batch for a look at a task of so many images: as by default, or less where it has less."""
    batch = lanes
    while 2 * batch <= min(256, images):
        batch *= 2
    return batch


def draw(step: Step, classes: Sequence[str], limit: int = 24, columns: int = 3) -> Image.Image:
    """A sheet of the first rank's first `limit` samples: the stored image with both crop
    windows, then the two views the learner gets, with id, class and whether it is replayed."""
    samples = step.ranks[0]
    shown = min(limit, len(samples.ids))
    images = [decode_row(step.loader.splits[t], row) for t, row in samples.rows]
    config = step.loader.config
    views = make_views(images, samples.parameters, config)
    cell = (3 * _CELL + 2 * _GAP + 2 * _MARGIN, _CELL + _CAPTION + _MARGIN)
    rows = -(-shown // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1] + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(shown):
        left = (i % columns) * cell[0] + _MARGIN
        top = (i // columns) * cell[1] + _MARGIN
        label = int(samples.labels[i])
        name = classes[label] if label >= 0 else "unlabelled"
        caption = f"{samples.ids[i]}  {name}" + ("  (replayed)" if samples.replay[i] else "")
        caption = legible(caption)
        font = ImageFont.truetype(file_for(caption), _LETTERS)
        pen.text((left, top - 2), caption, fill="#333333", font=font)
        crops = [parameters.crop[i].tolist() for parameters in samples.parameters]
        tiles = [_with_crops(images[i], crops)]
        tiles += [_picture(views[v, i], config.mean, config.std) for v in (0, 1)]
        for k, tile in enumerate(tiles):
            x, y = left + k * (_CELL + _GAP), top + _CAPTION - 4
            sheet.paste(tile, (x, y))
            if k:
                frame = (x - 1, y - 1, x + _CELL, y + _CELL)
                pen.rectangle(frame, outline=_COLOURS[k - 1], width=2)
    return sheet


def _with_crops(image: Image.Image, crops: Sequence[Sequence[int]]) -> Image.Image:
    """The stored image in a cell, the window of each view framed in its colour."""
    scale = _CELL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    cell = Image.new("RGB", (_CELL, _CELL), "#f2f2f2")
    offset = ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2)
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    cell.paste(image.resize((size[0], size[1]), smooth), offset)
    pen = ImageDraw.Draw(cell)
    for colour, (top, left, height, width) in zip(_COLOURS, crops, strict=True):
        corners = (left, top, left + width, top + height)
        x0, y0, x1, y1 = (round(v * scale) + offset[k % 2] for k, v in enumerate(corners))
        pen.rectangle((x0, y0, min(x1, _CELL) - 1, min(y1, _CELL) - 1), outline=colour, width=2)
    return cell


def _picture(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalised view [3, s, s] as a picture again, enlarged without smoothing."""
    scaled = view * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    pixels = (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    smooth = Image.Resampling.LANCZOS if picture.width > _CELL else Image.Resampling.NEAREST
    return picture.resize((_CELL, _CELL), smooth)
