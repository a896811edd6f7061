"""The usual way to make views: webdataset, a torch DataLoader, torchvision's transforms.

Typical code for the same augmentations on the same shards: worker processes
that each read shards, decode with Pillow, draw and apply the transforms image by image. It serves
as the baseline of `bench loader` only.

torchvision blurs with the whole 2D kernel; many training scripts use a transform of their own
around Pillow's blur, an approximation but quick. Either can be asked for.
"""

import io
import multiprocessing
import os
import random
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms

from kaizen_dist.common.device_clock import moment, reach
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.images import EXTENSIONS
from kaizen_dist.views.backend import CPU
from kaizen_dist.views.recipe import SIGMAS, blur_window

_SHUFFLED = 1000
"""Encoded samples in a worker's shuffle buffer."""
_ENDINGS = frozenset(EXTENSIONS.values())

WorkerTime: TypeAlias = tuple[int, float]
"""A worker's process id, and the CPU seconds it had used when a batch was ready."""


class TwoViews:
    """A sample of webdataset to (first view, second view, label)."""

    def __init__(self, config: ViewsConfig, pillow_blur: bool = False) -> None:
        self.transforms = [_transform(config, view, pillow_blur) for view in (0, 1)]

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
        encoded = next(value for name, value in sample.items() if name in _ENDINGS)
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        first, second = (transform(image) for transform in self.transforms)
        return first, second, int(sample.get("cls", b"-1"))


class PillowBlur:
    """A Gaussian blur of random sigma, approximated by Pillow (three box blurs)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*SIGMAS)))


def _transform(config: ViewsConfig, view: int, pillow_blur: bool) -> transforms.Compose:
    cubic = transforms.InterpolationMode.BICUBIC
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    steps = [
        transforms.RandomResizedCrop(config.size, config.crop_scale, config.crop_ratio, cubic),
        transforms.RandomApply([transforms.ColorJitter(*strengths)], config.jitter),
        transforms.RandomGrayscale(config.grey),
    ]
    if config.blur[view] > 0:
        exact = transforms.GaussianBlur(blur_window(config.size), SIGMAS)
        blur = PillowBlur() if pillow_blur else exact
        steps.append(transforms.RandomApply([blur], config.blur[view]))
    if config.solarise[view] > 0:
        steps.append(transforms.RandomSolarize(128, config.solarise[view]))
    steps += [transforms.RandomHorizontalFlip(config.flip), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(config.mean, config.std)])


def batches(
    shards: Sequence[Path],
    config: ViewsConfig,
    batch: int,
    workers: int,
    ahead: int,
    pillow_blur: bool = False,
    device: torch.device = CPU,
) -> Generator[tuple[int, WorkerTime | None], None, None]:
    """Without end: the images of a batch that is now on `device`, and its worker's time.

    Each of `workers` processes keeps `ahead` batches ready, for a GPU in pinned memory. Closing
    the iterator ends them.
    """
    import webdataset  # not on every machine that measures something else

    urls = [str(path) for path in shards]
    dataset = webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
    views = TwoViews(config, pillow_blur)
    dataset = dataset.shuffle(_SHUFFLED).map(views).batched(batch, partial=False)
    # Workers forked from a server have none of this process's threads (DALI's) half-copied.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    loader = DataLoader(
        dataset.map(_timed),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead,
        multiprocessing_context=context,
        pin_memory=device.type == "cuda",
    )
    for made, worker in loader:
        for part in made:
            torch.as_tensor(part).to(device, non_blocking=True)
        reach(moment(device))
        yield len(made[0]), worker


def _timed(made: Any) -> tuple[Any, WorkerTime]:
    return made, (os.getpid(), time.process_time())
