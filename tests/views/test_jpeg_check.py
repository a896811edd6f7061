"""Which JPEGs and PNGs are regular: those that Pillow writes are, what is broken off is not."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from kaizen_dist.views.jpeg_check import regular_jpeg, regular_png


def jpeg(mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, "JPEG", **options)
    return data.getvalue()


def with_thumbnail() -> bytes:
    """A whole JPEG within an APP1 segment, as cameras write it."""
    inner = jpeg(quality=20)
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    whole = jpeg()
    return whole[:2] + segment + whole[2:]


WHOLE = {
    "baseline": jpeg(),
    "optimised": jpeg(optimize=True, quality=98),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_blocks=1),
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "comment and profile": jpeg(comment=b"\xff\xd9 not the end", icc_profile=b"\xff\xda" * 50),
    "thumbnail": with_thumbnail(),
    "bytes after its end": jpeg() + b"\xff\x01 and more",
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_is_regular_and_no_part_of_it_is(kind):
    data = WHOLE[kind]
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (56, 40)
    assert regular_jpeg(data)
    end = data.rindex(b"\xff\xd9") + 2
    for cut in (*range(0, min(end, 800), 7), end // 2, end - 2, end - 1):
        assert not regular_jpeg(data[:cut]), cut


def test_a_marker_that_does_not_belong_in_a_scan():
    data = jpeg()
    middle = data.index(b"\xff\xda") + 300
    assert regular_jpeg(data[:middle] + b"\xff\x00\xff\xd3" + data[middle:])
    for marker in (b"\xff\x01", b"\xff\xd8", b"\xff\xc0", b"\xff\xb4"):
        assert not regular_jpeg(data[:middle] + marker + data[middle:])


def test_what_is_no_jpeg():
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", bytes(100)):
        assert not regular_jpeg(data)


def png(mode: str = "RGB", **options) -> bytes:
    data = io.BytesIO()
    Image.radial_gradient("L").resize((56, 40)).convert(mode).save(data, "PNG", **options)
    return data.getvalue()


def with_chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """A PNG with a further chunk behind its header."""
    whole, checksum = png(), zlib.crc32(name + content) if checksum is None else checksum
    chunk = len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")
    return whole[:33] + chunk + whole[33:]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_a_whole_png_is_regular_and_no_part_or_change_of_it_is(mode):
    data = png(mode)
    assert regular_png(data)
    assert regular_png(data + b"bytes after its end")
    for cut in range(0, len(data), 7):
        assert not regular_png(data[:cut]), cut
        changed = bytearray(data)
        changed[cut] ^= 1
        assert not regular_png(bytes(changed)), cut


def test_chunks_that_decoders_judge_differently():
    assert regular_png(with_chunk(b"gAMA", (100_000).to_bytes(4, "big")))
    for name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"xxXx"):
        assert not regular_png(with_chunk(name, b"x\0\0" + zlib.compress(b"y")))
    assert not regular_png(with_chunk(b"gAMA", (100_000).to_bytes(4, "big"), checksum=1))
    assert not regular_png(png(icc_profile=b"profile"))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (56, 40))]}
    assert not regular_png(png(**frames))
