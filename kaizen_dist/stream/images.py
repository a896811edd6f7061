"""One encoded image: whether it decodes, how large it is, which extension its bytes deserve.

In come the bytes of an image file, out come its facts, or `BadImageError` with the reason.
Every image passes through here once, while `prepare` writes the shards, so that nothing that
reads a stream later has to expect a broken one.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from kaizen_dist.errors import DataError

# Only raster formats that Pillow decodes by itself (its EPS reader, for one, starts a program).
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "GIF": "gif",
    "TIFF": "tiff",
    "PPM": "ppm",
}
"""Pillow's name of each accepted format, and the extension its images get in a shard."""

SUFFIXES = frozenset({*EXTENSIONS.values(), "jpeg", "tif", "pgm"})
"""File name endings (lower case, no dot) by which a source recognises an image."""

JPEG_QUALITY = 95


class BadImageError(ValueError):
    """The bytes are no image that can be decoded; the message is the reason."""


class EncodedImage(NamedTuple):
    """An image as it is stored; `height` and `width` are in pixels, before any EXIF rotation."""

    data: bytes
    extension: str
    height: int
    width: int


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: by its ending, and hidden files never."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in SUFFIXES


def image_extension(data: bytes) -> str:
    """The extension (`jpg`, `png`, ...) that an image's own bytes ask for.

    Raises DataError where they are not of an accepted format.
    """
    try:
        return identify(data).extension
    except BadImageError as error:
        raise DataError(str(error)) from None


def identify(data: bytes) -> EncodedImage:
    """An image by its header alone, no pixel decoded. Raises BadImageError."""
    image = _open(data)
    return EncodedImage(data, EXTENSIONS[image.format or ""], image.height, image.width)


def decode_whole(data: bytes, shrink_to: int | None = None) -> EncodedImage:
    """Decodes every pixel and says what is to be stored.

    The bytes are kept as they are, unless `shrink_to` is below the shorter side (pixels): then
    the image is scaled (bicubic, antialiased) until that side has this length, and encoded
    again, a PNG as PNG and all else as JPEG of quality 95 in RGB.
    Raises BadImageError for anything Pillow cannot decode, or finds too large to be honest.
    """
    image = _open(data, decode=True)
    if shrink_to is None or min(image.size) <= shrink_to:
        return EncodedImage(data, EXTENSIONS[image.format or ""], image.height, image.width)
    return _shrunk(image, shrink_to)


def in_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit RGB."""
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow itself would clip nearly all of them to white.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _open(data: bytes, decode: bool = False) -> Image.Image:
    """The image, its pixels decoded or not; one too large for Pillow's limit is a bad one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, which nobody reads here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=list(EXTENSIONS))
            if decode:
                image.load()
            return image
    except UnidentifiedImageError:
        detail = "no image of a known format" if data else "an empty file"
        raise BadImageError(detail) from None
    except Exception as error:  # Pillow's decoders raise nearly every kind
        detail = f": {error}" if str(error) else ""
        raise BadImageError(f"{type(error).__name__}{detail}") from None


def _shrunk(image: Image.Image, shorter: int) -> EncodedImage:
    scale = shorter / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    as_png = image.format == "PNG"
    # A palette cannot be interpolated, and a JPEG holds neither palette nor transparency.
    if not as_png:
        image = in_rgb(image)
    elif image.mode in ("P", "1"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    smaller = image.resize(size, Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    if as_png:
        smaller.save(encoded, "PNG")
    else:
        smaller.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return EncodedImage(encoded.getvalue(), "png" if as_png else "jpg", size[1], size[0])
