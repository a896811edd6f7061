"""Images of a task that stay decoded in memory, where `views.memory_budget` allows it.

The backend decodes an image at its first use, and its pixels are kept until the task ends. So views
are to the last bit what they are without a cache; reading and decoding is done once instead of in
every epoch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.backend import Backend, Sizes, UndecodableError
from kaizen_dist.views.bad_samples import Row

GIGABYTE = 1e9
_CHANNELS = 3


class ImageCache:
    """The pixels of samples, each decoded once; safe to be used by threads."""

    def __init__(self, splits: Mapping[int, Split]) -> None:
        self._splits = splits
        self._kept: dict[Row, Tensor] = {}

    def pixels(self, backend: Backend, rows: Sequence[Row], sizes: Sizes) -> list[Tensor]:
        """The pixels of some rows, see `Backend.decode`; `sizes` [n, 2] are their index's.

        Raises:
            UndecodableError: for images that do not decode.
            DataError: if a shard cannot be read.
        """
        # Two threads may decode the same image: the result is the same, and harmless.
        new = [position for position, row in enumerate(rows) if row not in self._kept]
        wanted = [rows[position] for position in new]
        try:
            decoded = backend.decode(read_rows(self._splits, wanted), sizes[new])
        except UndecodableError as error:
            raise UndecodableError({new[i]: why for i, why in error.reasons.items()}) from None
        self._kept.update(zip(wanted, decoded, strict=True))
        return [self._kept[row] for row in rows]


def read_rows(splits: Mapping[int, Split], rows: Sequence[Row]) -> list[bytes]:
    """The encoded images of some rows, read task by task. Raises DataError."""
    images = [b""] * len(rows)
    for task in dict(rows):
        positions = [position for position, row in enumerate(rows) if row[0] == task]
        found = splits[task].read_all([rows[position][1] for position in positions])
        for position, image in zip(positions, found, strict=True):
            images[position] = image
    return images


def decoded_bytes(order: Order, splits: Mapping[int, Split], lanes: Sequence[int] | None) -> int:
    """Bytes of all images that some lanes (all if None) ever serve, decoded to 8-bit RGB."""
    pixels = 0
    for task, rows in order.lane_rows(lanes).items():
        height, width = (splits[task].index[side].astype(np.int64) for side in ("height", "width"))
        pixels += int(height[rows] @ width[rows])
    return _CHANNELS * pixels
