"""The plain view, for looking without learning: resized, centre-cropped, normalised.

Encoded images come in, float tensors go out. A run's evaluation and a deployed model share this
page, so nothing here needs more of the house than which images there are (stream/images.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kaizen_dist.stream.images import decode as decode

Channels = tuple[float, float, float]
"""A value each for red, green and blue, where pixels lie in [0, 1]."""

LONGEST: Final = 16
"""The longer side over the shorter one, of what is resized."""


@dataclass(frozen=True)
class PlainView:
    """The numbers of a plain view."""

    shorter: int
    """Pixels of the image's shorter side before the crop."""
    size: int
    """Side of the crop in pixels."""
    mean: Channels
    std: Channels

    def of(self, images: Sequence[Image.Image]) -> Tensor:
        """The views [n, 3, size, size], float32, of n RGB images of any size."""
        return self.of_pixels([self.pixels(image) for image in images])

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """[size, size, 3] of an RGB image of any size: all of it that a view needs."""
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


def middle(image: Image.Image) -> Image.Image:
    """An image, cut to its middle where it is longer than `LONGEST` times its width.

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
