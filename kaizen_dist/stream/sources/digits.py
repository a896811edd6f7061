"""`digits`: scikit-learn's 1,797 handwritten digits of 8x8, embedded in the library.

UCI's optical recognition of handwritten digits, test part, grey levels 0 to 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind, encode_png


@dataclass(frozen=True)
class _Pictures:
    """Grey images [n, height, width] of uint8 in memory, encoded losslessly when read."""

    pixels: NDArray[np.uint8]
    names: Sequence[str]

    def read(self, i: int) -> bytes:
        return encode_png(Image.fromarray(self.pixels[i]))

    def name_of(self, i: int) -> str:
        return self.names[i]


class DigitsSource(SourceKind):
    """All digits, sorted by class."""

    usage = "digits"
    pattern = ""

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:  # noqa: ARG002
        """As `SourceKind.open`."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.argsort(digits.target, kind="stable")
        labels = digits.target[order].astype(np.int64)
        pixels = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)
        return Source(
            spec=spec,
            classes=[str(name) for name in digits.target_names],
            domains=[],
            labels=labels,
            domains_of=np.full(len(labels), NO_DOMAIN),
            is_val=np.zeros(len(labels), bool),
            images=_Pictures(pixels, [f"digit {i}" for i in order]),
        )
