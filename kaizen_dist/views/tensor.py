"""The recipe applied with Pillow, torch and torchvision, for any machine.

Encoded images and parameters come in, normalised float views go out. Each image is decoded
once and cropped twice; all colour work is done on the whole batch. Views are made on the CPU;
for a GPU they are sent there from pinned memory, on a stream of their own.
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
from kaizen_dist.views.backend import UndecodableError
from kaizen_dist.views.recipe import LUMA, ViewParameters, blur_window

EVAL_RESIZE = 256 / 224
"""Shorter side before the centre crop, over the size of a view, for views above 64 px."""


class TorchBackend:
    """See `views.backend.Backend`."""

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def views(
        self, encoded: Sequence[bytes], parameters: tuple[ViewParameters, ViewParameters]
    ) -> Tensor:
        return self._sent(make_views(_decode_all(encoded), parameters, self.config))

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        return self._sent(centre_views(_decode_all(encoded), self.config))

    def _sent(self, views: Tensor) -> Tensor:
        if self._stream is None:
            return views
        with torch.cuda.stream(self._stream):
            there = views.pin_memory().to(self.device, non_blocking=True)
            self._stream.synchronize()
        return there


def _decode_all(encoded: Sequence[bytes]) -> list[Image.Image]:
    images = []
    for position, data in enumerate(encoded):
        try:
            images.append(decode(data))
        except OSError as error:
            raise UndecodableError(position, str(error)) from None
    return images


def decode(encoded: bytes) -> Image.Image:
    """An RGB image.

    Raises:
        OSError: (Pillow's, for all that cannot be decoded whole)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(encoded))
            if image.mode.startswith("I"):
                # 16 bits of grey: Pillow itself would clip nearly all of them to white.
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
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
    short = centre_side(size)
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        scale = short / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels[i] = np.asarray(resized.crop((left, top, left + size, top + size)))
    return _normalise(torch.from_numpy(pixels).float(), config)


def centre_side(size: int) -> int:
    """Pixels of an image's shorter side before the centre crop of `size`."""
    return round(size * EVAL_RESIZE) if size > 64 else size


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
    """One [h, w, 3] image blurred."""
    window = blur_window(pixels.shape[0])
    blurred = transforms.gaussian_blur(
        pixels.permute(2, 0, 1), kernel_size=[window, window], sigma=[sigma, sigma]
    )
    return blurred.permute(1, 2, 0)


def _normalise(pixels: Tensor, config: ViewsConfig) -> Tensor:
    """[n, h, w, 3] in [0, 255] to normalised [n, 3, h, w]."""
    mean, std = (torch.tensor(v) * 255 for v in (config.mean, config.std))
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()
