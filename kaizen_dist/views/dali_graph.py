"""The recipe as DALI graphs: encoded images and parameters in, normalised views out.

One decode, then for each view a window cut out and resized, and the colour work, all with
numbers fed from outside: nothing in a graph is random. Operators follow their input: decoded
on a GPU (`mixed`: the entropy decoding is the host's), an image stays there.

Inputs have names, one entry an image: `images` (the file's bytes, or its pixels), and those of
`inputs`. Where DALI's own operator differs from the recipe, it is not used: its hue is not
torchvision's and its contrast has a fixed centre, so colour is the recipe's matrix and a mean; its
crop inside `resize` lets pixels beyond the window in, so the window is cut out first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.eval_view import EvalView
from kaizen_dist.views.recipe import LUMA, Parameters, blur_window

IMAGES = "images"
"""Under this name a pipeline is fed the images themselves."""
_BLUR_REACH = 4.0
"""Sigmas at which a blur is cut off. What lies beyond weighs 6e-5, a hundredth of a level."""


def inputs(parameters: Parameters, size: int) -> dict[str, NDArray[Any]]:
    """The parameters of both views as `two_views` takes them: by NAME_VIEW, a row an image."""
    made: dict[str, NDArray[Any]] = {}
    for view, numbers in enumerate(parameters):
        contrast, colour = numbers.contrast[:, None, None], numbers.colour
        reach = 2 * np.ceil(_BLUR_REACH * numbers.blur) + 1
        of_view = {
            # [n, 2] each: top, left of the window; its height and width.
            "start": numbers.crop[:, :2].astype(np.int32, order="C"),
            "shape": numbers.crop[:, 2:].astype(np.int32, order="C"),
            # [n, 3, 3]: c M, see recipe.py.
            "matrix": (contrast * colour).astype(np.float32),
            # [n, 3, 3]: takes an image's mean RGB m to (1 - c) mean_grey(M m), three times.
            "centre": ((1 - contrast) * np.tile(LUMA, (3, 1)) @ colour).astype(np.float32),
            "sigma": numbers.blur.astype(np.float32),
            "window": np.minimum(reach, blur_window(size)).astype(np.int32),
            "solarise": numbers.solarise,
            "flip": numbers.flip.astype(np.int32),
        }
        made |= {f"{name}_{view}": values for name, values in of_view.items()}
    return made


def _input(name: str, view: int, dtype: Any, ndim: int = 0) -> Any:
    return fn.external_source(name=f"{name}_{view}", dtype=dtype, ndim=ndim)


@pipeline_def(enable_conditionals=True)
def two_views(config: ViewsConfig, decoder: str) -> Any:
    """Both views of every image: two batches of [3, size, size] float32."""
    images = _decoded(decoder)
    return _view(images, 0, config), _view(images, 1, config)


@pipeline_def(enable_conditionals=True)
def two_views_of_pixels(config: ViewsConfig, device: str) -> Any:
    """`two_views` of images decoded by `decoded`."""
    images = fn.external_source(name=IMAGES, dtype=types.UINT8, ndim=3, layout="HWC", device=device)
    return _view(images, 0, config), _view(images, 1, config)


@pipeline_def
def centre_view(config: ViewsConfig, decoder: str) -> Any:
    """The view for evaluation: a batch of [3, size, size] float32."""
    resized = fn.resize(
        _decoded(decoder),
        mode="not_smaller",
        size=EvalView.of_size(config.size, config.mean, config.std).shorter,
        subpixel_scale=False,  # the whole image becomes a whole number of pixels, as in Pillow
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )
    return _normalise(resized, config, crop=(config.size, config.size), rounding="truncate")


@pipeline_def
def decoded(decoder: str) -> Any:
    """Every image [height, width, 3] uint8."""
    return _decoded(decoder)


def _decoded(decoder: str) -> Any:
    encoded = fn.external_source(name=IMAGES, dtype=types.UINT8, ndim=1)
    return fn.decoders.image(
        encoded,
        device=decoder,
        output_type=types.RGB,
        # The recipe's windows are of the stored image, before any rotation that EXIF asks for.
        adjust_orientation=False,
        # On a GPU, colours are stretched to the pixels as a CPU's decoder does.
        jpeg_fancy_upsampling=True,
        # A GPU's JPEG engine rounds otherwise than its cores. With a share for each, an image's
        # pixels would depend on its place in the batch; and not every GPU has that engine.
        hw_decoder_load=0.0,
    )


def _view(images: Any, view: int, config: ViewsConfig) -> Any:
    start, shape = (_input(name, view, types.INT32, 1) for name in ("start", "shape"))
    window = fn.slice(images, start=start, shape=shape, axes=(0, 1))
    size = (config.size, config.size)
    resized = fn.resize(window, size=size, interp_type=types.INTERP_CUBIC, antialias=True)
    pixels = _colour(resized, view)
    # Conditional per image: an operation runs only for the images whose parameters need it.
    sigma, across = _input("sigma", view, types.FLOAT), _input("window", view, types.INT32)
    if sigma > 0:
        pixels = fn.gaussian_blur(pixels, sigma=sigma, window_size=across)
    solarise = _input("solarise", view, types.BOOL)
    if solarise:
        pixels = pixels + (pixels >= 128.0) * (255.0 - 2.0 * pixels)
    return _normalise(pixels, config, mirror=_input("flip", view, types.INT32))


def _colour(pixels: Any, view: int) -> Any:
    """Matrix and contrast as one affine map, clipped once; uint8 in, float32 out."""
    matrix, centre = (_input(name, view, types.FLOAT, 2) for name in ("matrix", "centre"))
    mean = fn.reductions.mean(pixels, axes=(0, 1), keep_dims=True, dtype=types.FLOAT)
    shift = fn.coord_transform(mean, M=centre)
    if pixels.device == "cpu":
        moved = fn.coord_transform(pixels, M=matrix, T=fn.reshape(shift, shape=[3]))
    else:
        # Operators take parameters from the host only, and the mean is on the GPU.
        moved = fn.coord_transform(pixels, M=matrix) + shift
    return math.clamp(moved, 0.0, 255.0)


def _normalise(pixels: Any, config: ViewsConfig, **options: Any) -> Any:
    return fn.crop_mirror_normalize(
        pixels,
        mean=[255 * value for value in config.mean],
        std=[255 * value for value in config.std],
        dtype=types.FLOAT,
        output_layout="CHW",
        **options,
    )
