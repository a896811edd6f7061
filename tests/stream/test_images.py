import io
import warnings

import numpy as np
import pytest
from PIL import Image

from kaizen_dist.errors import DataError
from kaizen_dist.stream.images import (
    BadImageError,
    decode_whole,
    identify,
    image_extension,
    in_rgb,
)


def encoded(format: str, size=(40, 30), mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
SUFFIXES = ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"]


@pytest.mark.parametrize(("format", "suffix"), list(zip(FORMATS, SUFFIXES, strict=True)))
def test_every_format_keeps_its_bytes_and_gets_its_extension(format, suffix):
    data = encoded(format)
    assert decode_whole(data) == (data, suffix, 30, 40)
    assert identify(data) == (data, suffix, 30, 40)
    assert image_extension(data) == suffix


@pytest.mark.parametrize("format", FORMATS)
def test_no_cut_or_damaged_image_is_anything_but_bad_or_whole(format):
    data = encoded(format)
    for cut in range(0, len(data), max(1, len(data) // 60)):
        damaged = bytearray(data)
        damaged[cut] ^= 0xFF
        for broken in (data[:cut], bytes(damaged)):
            try:
                decode_whole(broken, shrink_to=8)
            except BadImageError as error:
                assert str(error)  # noqa: PT017


def test_a_truncated_jpeg_is_bad():
    data = encoded("JPEG")
    with pytest.raises(BadImageError, match=r"(?i)truncated"):
        decode_whole(data[: len(data) // 2])


def test_what_is_no_image_is_named_so():
    with pytest.raises(BadImageError, match="an empty file"):
        decode_whole(b"")
    with pytest.raises(BadImageError, match="no image of a known format"):
        decode_whole(b"<svg></svg>")
    with pytest.raises(DataError, match="no image"):
        image_extension(b"hello")


@pytest.mark.parametrize("limit", [1000, 500])  # above Pillow's warning, and above its error
def test_an_image_of_dishonest_size_is_bad_without_a_warning(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImageError, match="decompression bomb"):
            decode_whole(encoded("PNG"))


def test_shrinking_scales_the_shorter_side_and_leaves_smaller_images_alone():
    data = encoded("JPEG", size=(40, 30))
    small = decode_whole(data, shrink_to=15)
    assert (small.extension, small.height, small.width) == ("jpg", 15, 20)
    assert Image.open(io.BytesIO(small.data)).size == (20, 15)
    assert decode_whole(data, shrink_to=30).data == data


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16"])
def test_a_png_stays_a_png(mode):
    image = Image.new(mode, (40, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    small = decode_whole(buffer.getvalue(), shrink_to=6)
    assert (small.extension, small.height, small.width) == ("png", 6, 8)
    assert Image.open(io.BytesIO(small.data)).format == "PNG"


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA")])
def test_all_else_becomes_a_jpeg_in_rgb(format, mode):
    small = decode_whole(encoded(format, mode=mode), shrink_to=6)
    image = Image.open(io.BytesIO(small.data))
    assert (small.extension, image.format, image.mode) == ("jpg", "JPEG", "RGB")


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_shrinking_keeps_the_shades_of_16_bits_of_grey(format):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).repeat(64).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format)
    small = Image.open(io.BytesIO(decode_whole(buffer.getvalue(), shrink_to=8).data))
    grey = np.asarray(in_rgb(small))[..., 1].astype(int)
    # Each row of the small image is the mean of eight, but for the cubic filter at both ends.
    expected = (ramp.reshape(8, 8, 64).mean(axis=1) / 256)[:, :8]
    assert np.abs(grey - expected)[1:-1].max() <= 2
    assert np.abs(grey - expected).max() <= 8
