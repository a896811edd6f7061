"""Encoded images: size, file extension and pixels, or `BadImageError` with the reason.

`prepare`, `verify`, `predict`, training and evaluation all decode here, so that they agree on
every image.

All formats are treated alike: the first of several frames; the upper 8 of 16 bits of grey; no
transparency. EXIF orientation is applied once, when an image is stored or predicted (`upright`);
what is stored is read as its pixels are.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from kaizen_dist.common.errors import KaizenError

# Only raster formats that Pillow decodes by itself (its EPS reader, for one, starts a program).
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # what Pillow calls a JPEG with further pictures behind it, as phones write
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

MOST_BYTES: Final = 1 << 29
"""Of an encoded image; the largest one has fewer without any compression."""
MOST_PIXELS: Final = 89_478_485
"""Of a decoded image, a quarter of a GiB in RGB; Pillow's own limit."""
MOST_RATIO: Final = 1000
"""The longer side over the shorter one."""

JPEG_QUALITY = 95

_TURNS: Final = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation (EXIF 2.32, table 4)."""

_READERS = [name for name in EXTENSIONS if name != "MPO"]


class BadImageError(OSError):
    """The bytes cannot be decoded as an image; the message is the reason."""


class EncodedImage(NamedTuple):
    """An image as it is stored; `height` and `width` are in pixels, before any EXIF rotation."""

    data: bytes
    extension: str
    height: int
    width: int


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image: by its ending, and hidden files never."""
    return not name.startswith(".") and name.rpartition(".")[2].lower() in SUFFIXES


def identify(data: bytes) -> EncodedImage:
    """Reads an image's header, decoding no pixel. Raises BadImageError."""
    with _without_remarks(), _in_words(data):
        return _facts(data, _header(data))


def decode(data: bytes, upright: bool = False) -> Image.Image:
    """An image in 8-bit RGB, turned as its EXIF orientation says with `upright`; thread-safe.

    Raises BadImageError for anything that Pillow cannot decode completely, that is larger than the
    bounds above, or whose values have no known black and white.
    """
    with _in_words(data):
        image = _header(data)
        pixels, orientation = _loaded(image)
        return in_rgb(_turned(pixels, orientation if upright else 1))


def decode_whole(data: bytes, shrink_to: int | None = None, upright: bool = False) -> EncodedImage:
    """Decodes every pixel and returns the image to be stored.

    The bytes are kept as they are, unless `shrink_to` is below the shorter side (pixels): then
    the image is scaled (bicubic, antialiased) until that side has this length; or unless it is to
    be turned `upright`. Then it is encoded again, a PNG as PNG and all else as JPEG of quality 95
    in RGB.
    Raises BadImageError as `decode`.
    """
    with _without_remarks(), _in_words(data):
        image = _header(data)
        facts = _facts(data, image)
        pixels, orientation = _loaded(image)
        orientation = orientation if upright else 1
        in_colour = in_rgb(pixels)
        shrinks = shrink_to is not None and min(pixels.size) > shrink_to
        if orientation == 1 and not shrinks:
            return facts
        as_png = facts.extension == "png"
        stored = _turned(pixels if as_png else in_colour, orientation)
        if shrinks and shrink_to is not None:
            stored = _shrunk(stored, shrink_to)
        return _encoded(stored, as_png)


def in_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit RGB.

    Raises BadImageError for numbers without a known black and white, ValueError for colours
    that Pillow cannot convert.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        # Pillow itself would clip nearly all of 16 bits to white, and fractions to black.
        image = Image.fromarray(_in_8_bits(np.asarray(image)))
    return image.convert("RGB")


def unfit(height: int, width: int) -> str | None:
    """The reason why an image of this size is not decoded; None if it is."""
    if min(height, width) < 1:
        return "it has no pixels"
    if height * width > MOST_PIXELS:
        return f"{height} x {width} pixels, more than {MOST_PIXELS:,}: a decompression bomb?"
    if max(height, width) > MOST_RATIO * min(height, width):
        return f"{height} x {width} pixels: one side is more than {MOST_RATIO:,} times the other"
    return None


# ---- Pillow -----------------------------------------------------------------------------


def _header(data: bytes) -> Image.Image:
    """The image, no pixel decoded yet."""
    if len(data) > MOST_BYTES:
        raise BadImageError(f"larger than {MOST_BYTES:,} bytes")
    image: Image.Image = Image.open(io.BytesIO(data), formats=_READERS)
    if image.format not in EXTENSIONS:
        raise BadImageError(f"{image.format} is no format of a stream")
    width, height = _stored_size(image)
    if reason := unfit(height, width):
        raise BadImageError(reason)
    return image


def _facts(data: bytes, image: Image.Image) -> EncodedImage:
    width, height = _stored_size(image)
    return EncodedImage(data, EXTENSIONS[image.format or ""], height, width)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the stored pixels; of a TIFF, Pillow gives those of the turned image."""
    if image.format != "TIFF":
        return image.size
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    return tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]


def _loaded(image: Image.Image) -> tuple[Image.Image, int]:
    """The image with its pixels as they are stored (Pillow turns TIFFs, and nothing else), and its
    EXIF orientation."""
    if image.format != "TIFF":
        # First: looking for EXIF loads a PNG, and would hide that it does not decode.
        image.load()
        return image, _orientation(image)
    orientation = _orientation(image)
    image.getexif()[ExifTags.Base.Orientation] = 1
    return (
        image.copy(),
        orientation,
    )  # which has the size of its pixels, whatever its header made Pillow say


def _in_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values of 16 bits, or fractions from 0 to 1, in 8 bits."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(255 * values).astype(np.uint8)
    if values.dtype.kind != "f" and low >= 0 and high < 1 << 16:
        return (values >> 8).astype(np.uint8)
    raise BadImageError(
        f"its pixels are numbers from {low:g} to {high:g}, whose black and white nobody knows; "
        "8 or 16 bits are read, and fractions from 0 to 1"
    )


@contextmanager
def _in_words(data: bytes) -> Iterator[None]:
    """Turns errors of Pillow into BadImageError, lack of memory into KaizenError."""
    try:
        yield
    except UnidentifiedImageError:  # Pillow's own words name an address in memory
        raise BadImageError("no image of a known format" if data else "an empty file") from None
    except BadImageError:
        raise
    except MemoryError:  # the machine's fault: what an image may ask for is bounded before
        raise KaizenError(
            "too little memory to decode an image; let fewer be decoded at a time "
            "(--workers of `prepare`, views.workers of a run)"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly every kind
        detail = f": {error}" if str(error) else ""
        raise BadImageError(f"{type(error).__name__}{detail}") from None


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Suppresses Pillow's warnings about metadata; not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none, or nonsense."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata of any kind of damage; the pixels are what counts
        return 1
    return found if found in _TURNS else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels as they are to be seen."""
    turn = _TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def _shrunk(image: Image.Image, shorter: int) -> Image.Image:
    scale = shorter / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.mode in ("P", "1"):  # a palette cannot be interpolated
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, as_png: bool) -> EncodedImage:
    """An image to be stored, without metadata."""
    encoded = io.BytesIO()
    if as_png:
        image.save(encoded, "PNG", exif=b"")
    else:
        image.save(encoded, "JPEG", quality=JPEG_QUALITY, exif=b"")
    extension = "png" if as_png else "jpg"
    return EncodedImage(encoded.getvalue(), extension, image.height, image.width)
