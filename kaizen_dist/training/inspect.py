"""`inspect`: the global batch of a step and its two views, without training.

The batch is put together rank by rank, as the ranks of a run would make it, so that the output
shows (and does not merely claim) that the world size does not matter.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from kaizen_dist.common.fonts import file_for, legible
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config
from kaizen_dist.runs.reader import read_results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay_order import NEWEST
from kaizen_dist.training.task_data import replay_without_run, task_loader
from kaizen_dist.views.backend import CPU
from kaizen_dist.views.bad_samples import decode_row
from kaizen_dist.views.loader import Loader, Samples
from kaizen_dist.views.torch_backend import make_views

_CELL, _GAP, _CAPTION, _MARGIN, _LETTERS = 96, 6, 16, 16, 10
_LONGEST_NAME = 24
"""Characters of a file's name, from its end."""
_COLOURS = ("#0a7d5c", "#b8472a")
"""The first and the second view's crop windows."""


@dataclass(frozen=True)
class Step:
    """One step's global batch in lane order, n samples."""

    loader: Loader
    """That of the last rank."""
    ranks: list[Samples]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    replay: NDArray[np.bool_]

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.order.steps_per_epoch

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
    config: Config,
    stream: Stream,
    task: int,
    epoch: int,
    step: int,
    replay_order: int = NEWEST,
    world_size: int = 1,
) -> Step:
    """The samples and view parameters of a step, gathered from `world_size` ranks.

    Raises:
        UsageError: if the world size does not fit the lanes, or the replayed images depend on
            a trained model (replay.select=herding).
        IndexError: if the epoch has no such step.
    """
    replayed, ranks = replay_without_run(config, stream), []
    for rank in range(world_size):
        own = rank, world_size, CPU, replay_order
        loader = task_loader(config, stream, task, replayed, *own)
        ranks.append(loader.samples(epoch, step))
    columns = (
        np.concatenate([getattr(s, name) for s in ranks]) for name in ("ids", "labels", "replay")
    )
    return Step(loader, ranks, *columns)


def replay_order_of(config: Path | None) -> int:
    """The version of the order in which the run with this file as its configuration replays; the
    newest for a file that is no run's. Raises DataError."""
    results = read_results(config.parent) if config is not None and config.name == CONFIG else None
    return NEWEST if results is None else results.replay_order


def default_batch(images: int, lanes: int) -> int:
    """The default batch size to inspect a task of `images`: 256, or less where it has less."""
    batch = lanes
    while 2 * batch <= min(256, images):
        batch *= 2
    return batch


def draw(step: Step, classes: Sequence[str], limit: int = 24, columns: int = 3) -> Image.Image:
    """A sheet of the first rank's first `limit` samples: the stored image with both crop
    windows, then the two views the learner gets, with id, class and file name, marked if it is
    replayed."""
    samples, config = step.ranks[0], step.loader.config
    images = [decode_row(step.loader.splits[t], row) for t, row in samples.rows]
    views = make_views(images, samples.parameters, config)
    shown = min(limit, len(images))
    width, height = 3 * _CELL + 2 * _GAP + 2 * _MARGIN, _CELL + _CAPTION + _MARGIN
    size = columns * width, -(-shown // columns) * height + _MARGIN
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(shown):
        left, top = i % columns * width + _MARGIN, i // columns * height + _MARGIN
        label = int(samples.labels[i])
        name = classes[label] if label >= 0 else "unlabelled"
        task, row = samples.rows[i]
        file = step.loader.splits[task].name(row).rpartition("/")[2][-_LONGEST_NAME:]
        words = (str(samples.ids[i]), name, file, "(replayed)" * bool(samples.replay[i]))
        caption = legible("  ".join(filter(None, words)))
        font = ImageFont.truetype(file_for(caption), _LETTERS)
        pen.text((left, top - 2), caption, fill="#333333", font=font)
        top += _CAPTION - 4
        sheet.paste(
            _with_crops(images[i], [p.crop[i].tolist() for p in samples.parameters]), (left, top)
        )
        for view, colour in enumerate(_COLOURS):
            x = left + (view + 1) * (_CELL + _GAP)
            sheet.paste(_picture(views[view, i], config.mean, config.std), (x, top))
            frame = (x - 1, top - 1, x + _CELL, top + _CELL)
            pen.rectangle(frame, outline=colour, width=2)
    return sheet


def _with_crops(image: Image.Image, crops: Sequence[Sequence[int]]) -> Image.Image:
    """The stored image in a cell, the window of each view framed in its colour."""
    scale = _CELL / max(image.size)
    cell = ImageOps.pad(image, (_CELL, _CELL), _resampling(scale < 1), "#f2f2f2")
    pen = ImageDraw.Draw(cell)
    x, y = ((_CELL - side * scale) // 2 for side in image.size)
    for colour, (top, left, height, width) in zip(_COLOURS, crops, strict=True):
        x0, y0 = round(left * scale + x), round(top * scale + y)
        x1, y1 = round((left + width) * scale + x), round((top + height) * scale + y)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
    return cell


def _picture(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A normalised view [3, s, s] as a picture again, enlarged without smoothing."""
    scaled = view * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    pixels = (scaled * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((_CELL, _CELL), _resampling(picture.width > _CELL))


def _resampling(smaller: bool) -> Image.Resampling:
    return Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
