"""The plain view, for looking without learning: resized, centre-cropped, normalised.

Encoded images come in, float tensors go out. A run's evaluation and a deployed model share this
page, so nothing here needs more of the house than which images there are (stream/images.py).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kaizen_dist.stream.images import EXTENSIONS, in_rgb

Channels = tuple[float, float, float]
"""A value each for red, green and blue, where pixels lie in [0, 1]."""


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
        size = self.size
        pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
        for i, image in enumerate(images):
            scale = self.shorter / min(image.size)
            width, height = (max(size, round(side * scale)) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
            pixels[i] = np.asarray(resized.crop((left, top, left + size, top + size)))
        return normalise(torch.from_numpy(pixels).float(), self.mean, self.std)


def decode(encoded: bytes) -> Image.Image:
    """An RGB image; safe to be called by several threads at once.

    Raises:
        OSError: for all that cannot be decoded whole, or is too large to be honest.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=list(EXTENSIONS))
        # Pillow itself raises only at twice its limit, and its warning is the process's matter.
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise OSError(f"{image.width} x {image.height} pixels: a decompression bomb?")
        return in_rgb(image)
    except UnidentifiedImageError:  # Pillow's own words name an address in memory
        raise OSError("no image of a known format" if encoded else "an empty file") from None
    except OSError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind
        raise OSError(f"{type(error).__name__}: {error}") from error


def normalise(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """[n, h, w, 3] in [0, 255] to normalised [n, 3, h, w]."""
    centre, spread = (torch.tensor(v) * 255 for v in (mean, std))
    return ((pixels - centre) / spread).permute(0, 3, 1, 2).contiguous()
