import io
import re
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from kaizen_dist.stream import images
from kaizen_dist.stream.images import (
    BadImageError,
    decode,
    decode_whole,
    identify,
    in_rgb,
)


def encoded(format: str, size=(40, 30), mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]
SUFFIXES = ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"]


@pytest.mark.parametrize(("format", "suffix"), list(zip(FORMATS, SUFFIXES, strict=True)))
def test_every_format_keeps_its_bytes_and_gets_its_extension(format, suffix):
    data = encoded(format)
    assert decode_whole(data) == (data, suffix, 30, 40)
    assert identify(data) == (data, suffix, 30, 40)


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
    with pytest.raises(BadImageError, match="no image"):
        identify(b"hello")


@pytest.mark.parametrize("limit", [1000, 500])  # above Pillow's warning, and above its error
def test_an_image_of_dishonest_size_is_bad_without_a_warning(monkeypatch, limit):
    for place, name in ((Image, "MAX_IMAGE_PIXELS"), (images, "MOST_PIXELS")):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.setattr(place, name, limit)
            warnings.simplefilter("error")
            for read in (identify, decode, decode_whole) if place is images else (decode,):
                with pytest.raises(BadImageError, match="decompression bomb"):
                    read(encoded("PNG"))


# ---- every format alike -------------------------------------------------------------------


def turned(orientation: int, in_xmp: bool = False) -> dict[str, object]:
    exif = Image.Exif()
    if in_xmp:
        exif[ExifTags.Base.XMLPacket] = b'<x tiff:Orientation="%d"/>' % orientation
    else:
        exif[ExifTags.Base.Orientation] = orientation
    return {"exif": exif}


def stored(data: bytes) -> NDArray[np.uint8]:
    """The pixels in colour, after a look at the facts."""
    pixels = np.asarray(decode(data))
    assert decode_whole(data) == identify(data)
    assert identify(data)[2:] == pixels.shape[:2]
    return pixels


@pytest.mark.parametrize("in_xmp", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {"quality": 100}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})],
)
def test_upright_is_what_pillow_takes_for_it(format, options, orientation, in_xmp):
    """Decoded for a prediction, and stored for a stream, where what is upright keeps its bytes."""
    image = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    image.paste("red", (0, 0, 20, 8))
    data = saved(image, format, **options, **turned(orientation, in_xmp))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decode(data, upright=True), expected)
    found = decode_whole(data, upright=True)
    assert (found.height, found.width) == expected.shape[:2]
    # Pillow looks for XMP where a TIFF has it, not within the EXIF of others.
    is_turned = orientation > 1 and (not in_xmp or format == "TIFF")
    assert (found.data != data) == is_turned
    for upright in (False, True):  # it says no more how it is to be turned
        off = np.abs(np.asarray(decode(found.data, upright), float) - expected)
        assert off.mean() < (3 if found.extension == "jpg" and is_turned else 1e-9)
    shrunk = decode_whole(data, shrink_to=15, upright=True)
    assert min(shrunk.height, shrunk.width) == 15
    assert (shrunk.height > shrunk.width) == (is_turned and orientation >= 5)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_orientation_that_is_none_turns_nothing(orientation):
    data = saved(Image.new("RGB", (8, 4)), "JPEG", **turned(orientation))
    assert decode_whole(data, upright=True).data == data


@pytest.mark.parametrize("in_xmp", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
    ],
)
def test_no_format_is_turned(format, options, orientation, in_xmp):
    image = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    image.paste("red", (0, 0, 20, 8))
    data = saved(image, format, **options, **turned(orientation, in_xmp))
    assert np.abs(stored(data) - np.asarray(image, int)).max() <= (8 if format == "JPEG" else 0)
    shrunk = decode_whole(data, shrink_to=15)
    assert (shrunk.height, shrunk.width) == (15, 20)
    assert decode(shrunk.data).getpixel((1, 1))[0] > 240


def deep_formats() -> dict[str, bytes]:
    """The same 16 bits of grey in all the ways there are; 8 bits where a format has no more."""
    grey = (np.arange(48 * 40).reshape(40, 48) * 34).astype(np.uint16)
    big = grey.astype(">u2")
    return {
        "png": saved(Image.fromarray(grey), "PNG"),
        "tiff": saved(Image.fromarray(grey), "TIFF"),
        "tiff of 32 bits": saved(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "ppm": b"P6 48 40 65535\n" + big.repeat(3, axis=1).tobytes(),
        "pgm": b"P5 48 40 65535\n" + big.tobytes(),
        "rgb png": deep_png(big.repeat(3, axis=1), 2),
        "rgba png": deep_png(big.repeat(4, axis=1), 6),
        "grey and alpha png": deep_png(big.repeat(2, axis=1), 4),
        "8 bits": saved(Image.fromarray((grey >> 8).astype(np.uint8)), "PNG"),
    }


def deep_png(rows: NDArray[np.uint16], colour: int) -> bytes:
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 48, 40, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND")


def chunk(name: bytes, data: bytes = b"") -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


@pytest.mark.parametrize("kind", deep_formats())
def test_sixteen_bits_are_their_upper_eight(kind):
    grey = np.arange(48 * 40).reshape(40, 48, 1) * 34 >> 8
    # Pillow rounds the 16 bits of a coloured PPM.
    assert np.abs(stored(deep_formats()[kind]) - grey).max() <= (kind == "ppm")


def colours() -> dict[str, bytes]:
    """One picture of few colours, in every mode of every format that holds it without loss."""
    image = Image.radial_gradient("L").resize((40, 30)).quantize(8).convert("RGB")
    image.paste((200, 30, 90), (5, 5, 30, 12))
    palette, clear = image.quantize(16), image.copy()
    clear.putalpha(Image.radial_gradient("L").resize((40, 30)))
    return {
        **{f: saved(image, f) for f in ("PNG", "TIFF", "BMP", "PPM")},
        "WEBP": saved(image, "WEBP", lossless=True),
        "GIF": saved(palette, "GIF"),
        **{f"palette {f}": saved(palette, f) for f in ("PNG", "TIFF", "BMP")},
        "palette with a clear colour": saved(palette, "PNG", transparency=2),
        "palette with clear colours": saved(palette, "PNG", transparency=bytes(range(16))),
        "GIF with a clear colour": saved(palette, "GIF", transparency=2),
        **{f"transparent {f}": saved(clear, f) for f in ("PNG", "TIFF", "BMP")},
        "transparent WEBP": saved(clear, "WEBP", lossless=True, exact=True),
        "CMYK TIFF": saved(image.convert("CMYK"), "TIFF"),
        **{f"first of two {f}": several(image, f) for f in ("PNG", "TIFF", "GIF", "WEBP")},
    }


def several(image: Image.Image, format: str) -> bytes:
    options = {"lossless": True} if format == "WEBP" else {}
    return saved(
        image, format, save_all=True, append_images=[Image.new("RGB", image.size)], **options
    )


@pytest.mark.parametrize("kind", colours())
def test_every_mode_has_the_same_colours(kind):
    assert np.abs(stored(colours()[kind]) - stored(colours()["PNG"]).astype(int)).max() <= 1


def test_of_a_phones_jpeg_it_is_the_first_picture():
    image = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    other = Image.new("RGB", (40, 30), "red")
    data = saved(image, "MPO", save_all=True, append_images=[other])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert identify(data)[1:] == ("jpg", 30, 40)
    assert np.array_equal(stored(data), decode(saved(image, "JPEG")))
    assert decode_whole(data, shrink_to=15)[1:] == ("jpg", 15, 20)


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
def test_fractions_are_read_from_0_to_1_or_refused(format):
    ramp = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)
    pixels = stored(saved(Image.fromarray(ramp), format))
    assert np.array_equal(pixels[..., 0], np.rint(255 * ramp))
    black = stored(saved(Image.fromarray(0 * ramp), format))
    assert black.max() == 0
    for wrong in (255 * ramp, ramp - 0.01, np.where(ramp > 0.5, np.nan, ramp), ramp + np.inf):
        data = saved(Image.fromarray(wrong.astype(np.float32)), format)
        for read in (decode, decode_whole):
            with pytest.raises(BadImageError, match="black and white nobody knows"):
                read(data)


def test_whole_numbers_beyond_16_bits_are_refused():
    for value in (65536, -1, 2**31 - 1):
        data = saved(Image.fromarray(np.full((30, 40), value, np.int32)), "TIFF")
        for read in (decode, decode_whole):
            with pytest.raises(BadImageError, match=re.escape(f"from {value:g} to {value:g}")):
                read(data)


@pytest.mark.parametrize("format", ["JPEG2000", "AVIF", "ICO", "TGA", "PCX", "DDS", "ICNS"])
def test_other_formats_are_named_as_none_of_ours(format):
    if format not in Image.SAVE:
        Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"Pillow is built without {format}")
    data = saved(Image.radial_gradient("L").convert("RGB"), format)
    for read in (identify, decode, decode_whole):
        with pytest.raises(BadImageError, match="no image of a known format"):
            read(data)


# ---- bounds -------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour: a thousandth of a byte for each pixel."""
    row = b"\0" + bytes((width + 7) // 8)
    packer = zlib.compressobj(9)
    lines = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND")


BOMBS = {
    "10,000,000 x 1": (bomb(10_000_000, 1), "one side is more than 1,000 times the other"),
    "1 x 5,000": (bomb(1, 5_000), "one side is more than 1,000 times the other"),
    "40,000 x 50": (bomb(50_050, 50), "one side is more than 1,000 times the other"),
    "20,000 x 20,000": (bomb(20_000, 20_000), "decompression bomb"),
    "screen of a gif": (
        encoded("GIF", mode="P")[:6] + b"\xff\xff\xff\xff" + encoded("GIF", mode="P")[10:],
        "decompression bomb",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("read", [identify, decode, decode_whole])
def test_what_would_not_fit_is_bad_before_a_pixel_is_decoded(kind, read):
    data, reason = BOMBS[kind]
    assert len(data) < 60_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match=reason):
        read(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_texts_and_profiles_that_are_bombs_are_bad(name):
    packed = zlib.compress(bytes(100 << 20), 9)
    whole = encoded("PNG")
    data = whole[:33] + chunk(name, b"x\0\0" + packed) + whole[33:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match="too large"):
        decode_whole(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_just_within_the_bounds():
    assert decode_whole(bomb(1000, 1))[2:] == (1, 1000)
    assert identify(bomb(9459, 9459))[2:] == (9459, 9459)
    assert images.unfit(9459, 9459) is None
    assert "bomb" in images.unfit(9460, 9460)
    assert "no pixels" in images.unfit(0, 5)


# ---- scaled -------------------------------------------------------------------------------


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
