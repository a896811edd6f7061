"""Check that a JPEG or PNG is complete and regular, by its markers or chunks, without decoding.

Decoders agree on the pixels of a regular file; on a damaged one some raise an error and some
invent what is missing. DALI invents it where a misplaced marker ends a scan, and skips chunks that
Pillow refuses, so DALI decodes only what passes this check, and Pillow everything else.
"""

import re
import zlib

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


_PNG = b"\x89PNG\r\n\x1a\n"
# Beside the image, short and uncompressed chunks only: no texts, no profiles, no animation.
_CHUNKS = frozenset(b"IHDR PLTE IDAT tRNS gAMA sRGB cHRM bKGD sBIT pHYs tIME hIST eXIf".split())


def regular_png(data: bytes) -> bool:
    """Whether `data` is a sequence of common chunks with the right checksums up to IEND."""
    if not data.startswith(_PNG):
        return False
    at = len(_PNG)
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if data[end : end + 4] != zlib.crc32(memoryview(data)[at + 4 : end]).to_bytes(4, "big"):
            return False
        if name == b"IEND":
            return True
        if name not in _CHUNKS:
            return False
        at = end + 4
    return False
