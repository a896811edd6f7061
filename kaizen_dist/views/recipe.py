"""The augmentation recipe: the parameters of every view, from counters alone.

`draw` turns (seed, task, draw, sample id, view) into the parameters of a whole batch at
once; the backends only apply them, so that every backend, rank and restart makes the same
view. In the order they are applied:

1. crop a window and resize it (bicubic, antialiased) to the size of a view;
2. colour: y = M x, one 3x3 matrix for brightness, saturation, hue (a turn in YIQ) and grey
   (saturation 0), then contrast about the mean grey: c y + (1 - c) mean_grey(y), clipped to
   [0, 255] once;
3. Gaussian blur; 4. solarise (values from 128 up are inverted); 5. flip; 6. normalise.

The crop follows torchvision's RandomResizedCrop (ten tries, then the largest centred window).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common import rng
from kaizen_dist.config.schema import ViewsConfig

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G, B in grey (ITU-R BT.601)."""

_TO_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_TRIES = 10
SIGMAS = (0.1, 2.0)
"""Least and largest sigma of a blur, in pixels of the view."""


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of one view of each of n images."""

    crop: NDArray[np.int64]
    """[n, 4]: top, left, height, width in pixels of the stored image."""
    colour: NDArray[np.float64]
    """[n, 3, 3]: M, applied to RGB in [0, 255]."""
    contrast: NDArray[np.float64]
    """[n]: c; 1 changes nothing."""
    blur: NDArray[np.float64]
    """[n]: sigma in pixels of the view; 0 = not blurred."""
    solarise: NDArray[np.bool_]
    """[n]"""
    flip: NDArray[np.bool_]
    """[n]"""


Parameters: TypeAlias = tuple[ViewParameters, ViewParameters]
"""Those of the first and of the second view."""


def draw(
    config: ViewsConfig,
    seed: int,
    task: int,
    view: int,
    ids: NDArray[np.int64],
    draws: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> ViewParameters:
    """The parameters of one view (0 or 1) of n images.

    `ids`, `draws` (see `Picks.draw`), `heights` and `widths` of the stored images have shape
    [n]; ids and draws lie below 2^32.
    """
    key = rng.key("views", seed, task)
    u = rng.uniform(key, 2 * _TRIES + 12, ids, draws, view)
    crop = _crop(config, u[:, : 2 * _TRIES + 2], heights, widths)
    u = u[:, 2 * _TRIES + 2 :]
    jittered = u[:, 0] < config.jitter
    colour = _colour(
        brightness=_factor(u[:, 1], config.brightness, jittered),
        saturation=_factor(u[:, 2], config.saturation, jittered) * ~(u[:, 5] < config.grey),
        turn=np.where(jittered, (2 * u[:, 3] - 1) * config.hue, 0.0),
    )
    sigma = SIGMAS[0] + u[:, 7] * (SIGMAS[1] - SIGMAS[0])
    return ViewParameters(
        crop=crop,
        colour=colour,
        contrast=_factor(u[:, 4], config.contrast, jittered),
        blur=np.where(u[:, 6] < config.blur[view], sigma, 0.0),
        solarise=u[:, 8] < config.solarise[view],
        flip=u[:, 9] < config.flip,
    )


def blur_window(size: int) -> int:
    """Width in pixels of the blur's window in a view of `size`: a tenth, as usual (23 at 224)."""
    return max(3, 2 * (size // 20) + 1)


def _crop(
    config: ViewsConfig,
    u: NDArray[np.float64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Random resized crop windows: `u` is [n, 2 tries + 2]."""
    full_h, full_w = (np.asarray(a, dtype=np.int64)[:, None] for a in (heights, widths))
    low, high = config.crop_scale
    area = full_h * full_w * (low + u[:, :_TRIES] * (high - low))
    least, largest = np.log(config.crop_ratio)
    ratio = np.exp(least + u[:, _TRIES : 2 * _TRIES] * (largest - least))
    tried_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    tried_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= full_w) & (tried_h > 0) & (tried_h <= full_h)
    first = fits.argmax(axis=1)[:, None]

    # No try fits: the largest centred window of an allowed shape.
    shape = np.clip(full_w / full_h, *config.crop_ratio)
    largest_w = np.minimum(full_w, np.rint(full_h * shape)).astype(np.int64)
    largest_h = np.minimum(full_h, np.rint(full_w / shape)).astype(np.int64)
    found = fits.any(axis=1)[:, None]
    height = np.where(found, np.take_along_axis(tried_h, first, axis=1), largest_h)
    width = np.where(found, np.take_along_axis(tried_w, first, axis=1), largest_w)
    free_h, free_w = full_h - height, full_w - width
    top = np.where(found, np.floor(u[:, -2:-1] * (free_h + 1)), free_h // 2)
    left = np.where(found, np.floor(u[:, -1:] * (free_w + 1)), free_w // 2)
    return np.concatenate([top, left, height, width], axis=1).astype(np.int64)


def _factor(
    u: NDArray[np.float64], strength: float, applied: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A factor in [1 - strength, 1 + strength], or 1 where the jitter is not applied."""
    return np.where(applied, 1.0 + (2 * u - 1) * strength, 1.0)


def _colour(
    brightness: NDArray[np.float64], saturation: NDArray[np.float64], turn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[n, 3, 3] matrices: brightness, then saturation, then the turn of the hue.

    In YIQ, saturation scales the two chroma axes and hue turns them, so both are one
    2x2 matrix there; `turn` is in whole turns, in the direction of HSV (red to yellow).
    """
    angle = 2 * np.pi * turn
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    inner = np.zeros((len(brightness), 3, 3))
    inner[:, 0, 0] = 1.0
    inner[:, 1, 1], inner[:, 1, 2] = cos, sin
    inner[:, 2, 1], inner[:, 2, 2] = -sin, cos
    return np.asarray(brightness[:, None, None] * (_FROM_YIQ @ inner @ _TO_YIQ))
