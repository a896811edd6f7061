"""The recipe applied with Pillow, torch and torchvision, for any machine.

Encoded images and parameters come in, normalised float views go out. Each image is decoded
once and cropped twice; all colour work is done on the whole batch. Views are made on the CPU;
for a GPU they are sent there from pinned memory, on a stream of their own.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.backend import Sizes, UndecodableError, record_stream
from kaizen_dist.views.eval_view import EvalView, decode, normalise
from kaizen_dist.views.recipe import LUMA, Parameters, ViewParameters, blur_window

Made = TypeVar("Made")


class TorchBackend:
    """See `views.backend.Backend`."""

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def views(self, encoded: Sequence[bytes], sizes: Sizes, parameters: Parameters) -> Tensor:
        size = self.config.size
        windows = _of_each(
            encoded, sizes.tolist(), lambda i, image: _windows(image, i, parameters, size)
        )
        return self._send(_finish(windows, parameters, self.config))

    def decode(self, encoded: Sequence[bytes], sizes: Sizes) -> list[Tensor]:
        return _of_each(encoded, sizes.tolist(), lambda _, i: torch.from_numpy(np.array(i)))

    def views_of(self, pixels: Sequence[Tensor], parameters: Parameters) -> Tensor:
        images = [Image.fromarray(image.numpy()) for image in pixels]
        return self._send(make_views(images, parameters, self.config))

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        view = EvalView.of_size(self.config.size, self.config.mean, self.config.std)
        pixels = _of_each(encoded, [None] * len(encoded), lambda _, image: view.pixels(image))
        return self._send(view.of_pixels(pixels))

    def _send(self, views: Tensor) -> Tensor:
        """The views on the device; this thread waits for the copy, the device's work does not."""
        if self._stream is None:
            return views
        with torch.cuda.stream(self._stream):
            there = views.pin_memory().to(self.device, non_blocking=True)
            # Not the whole stream, on which other threads may have queued copies since.
            arrived = torch.cuda.Event(blocking=True)
            arrived.record(self._stream)
        arrived.synchronize()
        return record_stream(there)


def _of_each(
    encoded: Sequence[bytes],
    sizes: Sequence[Sequence[int] | None],
    make: Callable[[int, Image.Image], Made],
) -> list[Made]:
    """`make(position, image)` of each image in RGB, of which one at a time is in memory.

    Raises UndecodableError for all that do not decode (to these sizes).
    """
    made, bad = [], {}
    for position, (data, size) in enumerate(zip(encoded, sizes, strict=True)):
        try:
            image = decode(data, size)
        except OSError as error:
            bad[position] = str(error)
        else:
            if not bad:
                made.append(make(position, image))
    if bad:
        raise UndecodableError(bad)
    return made


def make_views(
    images: Sequence[Image.Image], parameters: Sequence[ViewParameters], config: ViewsConfig
) -> Tensor:
    """Views [len(parameters), n, 3, size, size], float32, of n decoded images."""
    windows = [_windows(image, i, parameters, config.size) for i, image in enumerate(images)]
    return _finish(windows, parameters, config)


def _windows(
    image: Image.Image, place: int, parameters: Sequence[ViewParameters], size: int
) -> list[NDArray[np.uint8]]:
    """What each view shows of an image, [size, size, 3]; its parameters are those of `place`."""
    made = []
    for of_view in parameters:
        top, left, height, width = of_view.crop[place].tolist()
        window = image.crop((left, top, left + width, top + height))
        made.append(np.asarray(window.resize((size, size), Image.Resampling.BICUBIC)))
    return made


def _finish(
    windows: Sequence[Sequence[NDArray[np.uint8]]],
    parameters: Sequence[ViewParameters],
    config: ViewsConfig,
) -> Tensor:
    """The views [views, n, 3, size, size] of the windows [n][views][size, size, 3]."""
    size = config.size
    pixels = np.array(windows, np.uint8).reshape(-1, len(parameters), size, size, 3)
    return torch.stack([_view(pixels[:, v], p, config) for v, p in enumerate(parameters)])


def _view(pixels: NDArray[np.uint8], parameters: ViewParameters, config: ViewsConfig) -> Tensor:
    """One view [n, 3, size, size] of n windows."""
    view = adjust_colour(
        torch.from_numpy(pixels).float(),
        torch.from_numpy(parameters.colour).float(),
        torch.from_numpy(parameters.contrast).float(),
    )
    window = [blur_window(config.size)] * 2
    for i in np.flatnonzero(parameters.blur).tolist():
        sigma = [float(parameters.blur[i])] * 2
        blurred = transforms.gaussian_blur(view[i].permute(2, 0, 1), window, sigma)
        view[i] = blurred.permute(1, 2, 0)
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
