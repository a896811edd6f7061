"""The evaluation view: resized, centre-cropped, normalised.

A run's evaluation and a deployed model share this module, so it imports nothing of the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from kaizen_dist.stream import images
from kaizen_dist.stream.images import BadImageError

Channels = tuple[float, float, float]
"""A value each for red, green and blue, where pixels lie in [0, 1]."""
_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(ge=1e-3, le=10)]

LONGEST: Final = 16
"""Longer side over shorter side of what is resized, at most."""
RESIZE: Final = 256 / 224
"""Shorter side before the centre crop, over the size of a view, for views above 64 px."""


@dataclass(frozen=True)
class EvalView:
    """The numbers of an evaluation view."""

    shorter: Annotated[int, Field(ge=1, le=8192)]
    """Pixels of the image's shorter side before the crop."""
    size: Annotated[int, Field(ge=1, le=4096)]
    """Side of the crop in pixels."""
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Deviation, _Deviation, _Deviation]

    @classmethod
    def of_size(cls, size: int, mean: Channels, std: Channels) -> "EvalView":
        """The evaluation view of a run whose views have this size."""
        return cls(round(size * RESIZE) if size > 64 else size, size, mean, std)

    def of(self, images: Sequence[Image.Image]) -> Tensor:
        """The views [n, 3, size, size], float32, of n RGB images of any size."""
        return self.of_pixels([self.pixels(image) for image in images])

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The part of an RGB image of any size that the view shows, [size, size, 3]."""
        size, image = self.size, middle(image)
        scale = self.shorter / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def of_pixels(self, pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """The views [n, 3, size, size] of the `pixels` of n images."""
        batch = np.stack(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)
        return normalise(torch.from_numpy(batch).float(), self.mean, self.std)


def decode(data: bytes, size: Sequence[int] | None = None) -> Image.Image:
    """An encoded image in 8-bit RGB, see `images.decode`.

    Raises:
        BadImageError: if it does not decode, or not to this `size` (height, width).
    """
    image = images.decode(data)
    check_size((image.height, image.width), size)
    return image


def check_size(found: tuple[int, int], indexed: Sequence[int] | None) -> None:
    """Raises BadImageError if the index says another (height, width) than an image has."""
    if indexed is not None and found != tuple(indexed):
        raise BadImageError(
            "it has {} x {} pixels, the index says {} x {}".format(*found, *indexed)
        )


def middle(image: Image.Image) -> Image.Image:
    """An image, cropped to its middle where its sides differ by more than `LONGEST` times.

    A view shows the middle only; to resize the ends too could take a thousand times the memory.
    """
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def normalise(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """[n, h, w, 3] in [0, 255] to normalised [n, 3, h, w]."""
    centre, spread = (torch.tensor(v) * 255 for v in (mean, std))
    return ((pixels - centre) / spread).permute(0, 3, 1, 2).contiguous()
