"""Is a JPEG whole and regular? Its markers alone are read, no pixel is decoded.

Decoders agree on the pixels of a regular file; on a damaged one some raise an error and some
make up what is missing. DALI makes it up where a marker that does not belong there breaks off
a scan, so it is given only what passes here, and Pillow judges the rest.
"""

import re

_EOI, _SOS = 0xD9, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman coding
_TABLES = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # DHT, DQT, DRI, COM, APPn
# In a scan, FF is followed by 00 where it is data, and restart markers are part of it.
_ENDS_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def regular_jpeg(data: bytes) -> bool:
    """Whether `data` is, from SOI to EOI, a sequence of segments and scans as in ITU-T T.81 B.1.

    False as well for codings that few decoders know (arithmetic, lossless, hierarchical).
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    at, frames = 2, 0
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            frames += 1
        elif marker == _SOS:
            end = _ENDS_SCAN.search(data, at)
            if end is None:
                return False
            at = end.start()
            if data[at + 1] == _EOI:
                return frames == 1
        elif marker not in _TABLES:
            return False
    return False
