"""The recipe applied with Pillow, torch and torchvision, for any machine.

Encoded images and parameters come in, normalised float views go out. Each image is decoded
once and cropped twice; all colour work is done on the whole batch. Views are made on the CPU;
for a GPU they are sent there from pinned memory, on a stream of their own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.backend import UndecodableError, wrong_size
from kaizen_dist.views.plain import PlainView, decode, normalise
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
        self,
        encoded: Sequence[bytes],
        sizes: NDArray[np.int64],
        parameters: tuple[ViewParameters, ViewParameters],
    ) -> Tensor:
        return self._sent(make_views(_decode_all(encoded, sizes), parameters, self.config))

    def decode(self, encoded: Sequence[bytes], sizes: NDArray[np.int64]) -> list[Tensor]:
        return [torch.from_numpy(np.array(image)) for image in _decode_all(encoded, sizes)]

    def views_of(
        self, pixels: Sequence[Tensor], parameters: tuple[ViewParameters, ViewParameters]
    ) -> Tensor:
        images = [Image.fromarray(image.numpy()) for image in pixels]
        return self._sent(make_views(images, parameters, self.config))

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        return self._sent(centre_views(_decode_all(encoded), self.config))

    def _sent(self, views: Tensor) -> Tensor:
        """The views on the device; this thread alone waits for the copy, not what runs there."""
        if self._stream is None:
            return views
        with torch.cuda.stream(self._stream):
            there = views.pin_memory().to(self.device, non_blocking=True)
            # Other threads may have sent more on the same stream since: not their copies.
            arrived = torch.cuda.Event(blocking=True)
            arrived.record(self._stream)
        arrived.synchronize()
        return there


def _decode_all(
    encoded: Sequence[bytes], sizes: NDArray[np.int64] | None = None
) -> list[Image.Image]:
    """RGB images. Raises UndecodableError for all that cannot be decoded (to these sizes)."""
    images, bad = [], {}
    for place, data in enumerate(encoded):
        try:
            images.append(decode(data))
        except OSError as error:
            bad[place] = str(error)
            continue
        size = images[-1].height, images[-1].width
        if sizes is not None and size != (said := tuple(sizes[place].tolist())):
            bad[place] = wrong_size(said, size)
    if bad:
        raise UndecodableError(bad)
    return images


def make_views(
    images: Sequence[Image.Image], parameters: Sequence[ViewParameters], config: ViewsConfig
) -> Tensor:
    """Views [len(parameters), n, 3, size, size], float32, of n decoded images."""
    return torch.stack([_make_view(images, p, config) for p in parameters])


def centre_views(images: Sequence[Image.Image], config: ViewsConfig) -> Tensor:
    """The plain view for evaluation, [n, 3, size, size] float32: resized, centre-cropped."""
    return plain_view(config).of(images)


def plain_view(config: ViewsConfig) -> PlainView:
    """The numbers of a configuration's plain view."""
    return PlainView(centre_side(config.size), config.size, config.mean, config.std)


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
    return normalise(torch.where(flip, view.flip(2), view), config.mean, config.std)


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
