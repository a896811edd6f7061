"""Which JPEGs are whole: those that Pillow writes are, and what is broken off is not."""

import io

import numpy as np
import pytest
from PIL import Image

from kaizen_dist.views.markers import regular_jpeg


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
