"""The recipe as DALI graphs: encoded images and parameters in, normalised views out.

One decode, then for each view a window cut out and resized, and the colour work, all with
numbers fed from outside: nothing in a graph is random. Operators follow their input: decoded
on a GPU (`mixed`: the entropy decoding is the host's), an image stays there.

Fed by name, one entry an image: `images` (the file's bytes, or its pixels), and for each view v
what `Fed` lists, as `NAME_v`. Where DALI's own operator means something else than the recipe, it is
not used: its hue is not torchvision's and its contrast has a fixed centre, so colour is the
recipe's matrix and a mean; its crop inside `resize` lets pixels beyond the window in, so the
window is cut out first.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.recipe import LUMA, ViewParameters, blur_window
from kaizen_dist.views.torch_backend import centre_side

IMAGES = "images"
"""Under this name a pipeline is fed the images themselves."""
_BLUR_REACH = 4.0
"""Sigmas at which a blur is cut off. What lies beyond weighs 6e-5, a hundredth of a level."""


@dataclass(frozen=True)
class Fed:
    """The parameters of one view as its graph takes them, a row for each of n images."""

    start: NDArray[np.int32]
    """[n, 2]: top, left of the window."""
    shape: NDArray[np.int32]
    """[n, 2]: its height and width."""
    matrix: NDArray[np.float32]
    """[n, 3, 3]: c M, see recipe.py."""
    centre: NDArray[np.float32]
    """[n, 3, 3]: takes an image's mean RGB m to (1 - c) mean_grey(M m), three times."""
    sigma: NDArray[np.float32]
    window: NDArray[np.int32]
    """[n]: of the blur."""
    solarise: NDArray[np.bool_]
    flip: NDArray[np.int32]

    @classmethod
    def of(cls, parameters: ViewParameters, size: int) -> "Fed":
        contrast, colour = parameters.contrast[:, None, None], parameters.colour
        reach = 2 * np.ceil(_BLUR_REACH * parameters.blur) + 1
        return cls(
            start=parameters.crop[:, :2].astype(np.int32, order="C"),
            shape=parameters.crop[:, 2:].astype(np.int32, order="C"),
            matrix=(contrast * colour).astype(np.float32),
            centre=((1 - contrast) * np.tile(LUMA, (3, 1)) @ colour).astype(np.float32),
            sigma=parameters.blur.astype(np.float32),
            window=np.minimum(reach, blur_window(size)).astype(np.int32),
            solarise=parameters.solarise,
            flip=parameters.flip.astype(np.int32),
        )

    def named(self, view: int) -> dict[str, NDArray[Any]]:
        """By the names under which a pipeline is fed."""
        return {f"{name}_{view}": values for name, values in asdict(self).items()}


@pipeline_def(enable_conditionals=True)
def two_views(config: ViewsConfig, decoder: str) -> Any:
    """Both views of every image: two batches of [3, size, size] float32."""
    images = _decoded(decoder)
    return _view(images, 0, config), _view(images, 1, config)


@pipeline_def(enable_conditionals=True)
def two_views_of_pixels(config: ViewsConfig, device: str) -> Any:
    """`two_views` of images that are decoded already, to what `decoded` makes of them."""
    images = fn.external_source(name=IMAGES, dtype=types.UINT8, ndim=3, layout="HWC", device=device)
    return _view(images, 0, config), _view(images, 1, config)


@pipeline_def
def centre_view(config: ViewsConfig, decoder: str) -> Any:
    """The view for evaluation: a batch of [3, size, size] float32."""
    resized = fn.resize(
        _decoded(decoder),
        mode="not_smaller",
        size=centre_side(config.size),
        subpixel_scale=False,  # the whole image becomes a whole number of pixels, as in Pillow
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )
    return _normalised(resized, config, crop=(config.size, config.size), rounding="truncate")


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
    start = fn.external_source(name=f"start_{view}", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name=f"shape_{view}", dtype=types.INT32, ndim=1)
    window = fn.slice(images, start=start, shape=shape, axes=(0, 1))
    pixels = _coloured(
        fn.resize(
            window, size=(config.size, config.size), interp_type=types.INTERP_CUBIC, antialias=True
        ),
        view,
    )
    # An image takes part in what its own parameters ask for, and costs nothing where not.
    sigma = fn.external_source(name=f"sigma_{view}", dtype=types.FLOAT, ndim=0)
    across = fn.external_source(name=f"window_{view}", dtype=types.INT32, ndim=0)
    if sigma > 0:
        pixels = fn.gaussian_blur(pixels, sigma=sigma, window_size=across)
    solarise = fn.external_source(name=f"solarise_{view}", dtype=types.BOOL, ndim=0)
    if solarise:
        pixels = pixels + (pixels >= 128.0) * (255.0 - 2.0 * pixels)
    flip = fn.external_source(name=f"flip_{view}", dtype=types.INT32, ndim=0)
    return _normalised(pixels, config, mirror=flip)


def _coloured(pixels: Any, view: int) -> Any:
    """Matrix and contrast as one affine map, clipped once; uint8 in, float32 out."""
    matrix = fn.external_source(name=f"matrix_{view}", dtype=types.FLOAT, ndim=2)
    centre = fn.external_source(name=f"centre_{view}", dtype=types.FLOAT, ndim=2)
    mean = fn.reductions.mean(pixels, axes=(0, 1), keep_dims=True, dtype=types.FLOAT)
    shift = fn.coord_transform(mean, M=centre)
    if pixels.device == "cpu":
        moved = fn.coord_transform(pixels, M=matrix, T=fn.reshape(shift, shape=[3]))
    else:
        # Operators take parameters from the host only, and the mean is on the GPU.
        moved = fn.coord_transform(pixels, M=matrix) + shift
    return math.clamp(moved, 0.0, 255.0)


def _normalised(pixels: Any, config: ViewsConfig, **options: Any) -> Any:
    return fn.crop_mirror_normalize(
        pixels,
        mean=[255 * value for value in config.mean],
        std=[255 * value for value in config.std],
        dtype=types.FLOAT,
        output_layout="CHW",
        **options,
    )
