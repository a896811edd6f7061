"""The recipe applied with Pillow, torch and torchvision, for any machine.

Encoded images and parameters come in, normalised float views go out. Each image is decoded
once and cropped twice; all colour work is done on the whole batch.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.recipe import LUMA, ViewParameters

EVAL_RESIZE = 256 / 224
"""Shorter side before the centre crop, over the size of a view, for views above 64 px."""


def decode(encoded: bytes) -> Image.Image:
    """An RGB image.

    Raises:
        OSError: (Pillow's, for all that cannot be decoded whole)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(encoded)).convert("RGB")
        except (SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
            raise OSError(str(error)) from error


def make_views(
    images: Sequence[Image.Image], parameters: Sequence[ViewParameters], config: ViewsConfig
) -> Tensor:
    """Views [len(parameters), n, 3, size, size], float32, of n decoded images."""
    return torch.stack([_make_view(images, p, config) for p in parameters])


def centre_views(images: Sequence[Image.Image], config: ViewsConfig) -> Tensor:
    """The plain view for evaluation, [n, 3, size, size] float32: resized, centre-cropped."""
    size = config.size
    short = round(size * EVAL_RESIZE) if size > 64 else size
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        scale = short / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(resized.crop((left, top, left + size, top + size)))
    return _normalise(torch.from_numpy(pixels).float(), config)


def _make_view(
    images: Sequence[Image.Image], parameters: ViewParameters, config: ViewsConfig
) -> Tensor:
    size = config.size
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, (image, (top, left, height, width)) in enumerate(
        zip(images, parameters.crop.tolist(), strict=True)
    ):
        window = image.crop((left, top, left + width, top + height))
        pixels[i] = np.asarray(window.resize((size, size), Image.Resampling.BICUBIC))
    view = adjust_colour(
        torch.from_numpy(pixels).float(),
        torch.from_numpy(parameters.colour).float(),
        torch.from_numpy(parameters.contrast).float(),
    )
    for i in np.flatnonzero(parameters.blur).tolist():
        view[i] = _blurred(view[i], float(parameters.blur[i]))
    solarise = torch.from_numpy(parameters.solarise)[:, None, None, None]
    view = torch.where(solarise & (view >= 128), 255 - view, view)
    flip = torch.from_numpy(parameters.flip)[:, None, None, None]
    return _normalise(torch.where(flip, view.flip(2), view), config)


def adjust_colour(pixels: Tensor, matrix: Tensor, contrast: Tensor) -> Tensor:
    """Colour matrix [n, 3, 3] and contrast [n] on pixels [n, h, w, 3] in [0, 255], clipped."""
    n, h, w, _ = pixels.shape
    flat = pixels.reshape(n, h * w, 3)
    # The mean grey of M x is that of x's mean, so both steps are one affine map.
    luma = torch.as_tensor(LUMA, dtype=pixels.dtype)
    mean_grey = (matrix @ flat.mean(dim=1)[:, :, None])[:, :, 0] @ luma
    bias = ((1 - contrast) * mean_grey)[:, None, None]
    scaled = contrast[:, None, None] * matrix
    adjusted = torch.baddbmm(bias.expand(n, 1, 3), flat, scaled.transpose(1, 2))
    return adjusted.clamp_(0, 255).reshape(n, h, w, 3)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """One [h, w, 3] image blurred; the window is a tenth of the view, as usual (23 at 224 px)."""
    window = max(3, 2 * (pixels.shape[0] // 20) + 1)
    blurred = transforms.gaussian_blur(
        pixels.permute(2, 0, 1), kernel_size=[window, window], sigma=[sigma, sigma]
    )
    return blurred.permute(1, 2, 0)


def _normalise(pixels: Tensor, config: ViewsConfig) -> Tensor:
    """[n, h, w, 3] in [0, 255] to normalised [n, 3, h, w]."""
    mean, std = (torch.tensor(v) * 255 for v in (config.mean, config.std))
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()
