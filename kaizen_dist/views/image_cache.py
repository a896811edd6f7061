"""Images of a task that stay decoded in memory, where `views.memory_budget` allows it.

In come rows of a task and of its replay, out come their pixels, decoded by the backend itself
at their first use and kept until the task ends. So views are to the last bit what they are
without it; only the time for reading and decoding is spent once instead of every epoch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.backend import Backend, UndecodableError
from kaizen_dist.views.bad_samples import Row

GIGABYTE = 1e9
_CHANNELS = 3


class DecodedImages:
    """The pixels of samples, each decoded once; safe to be used by threads."""

    def __init__(self, splits: Mapping[int, Split]) -> None:
        self._splits = splits
        self._kept: dict[Row, Tensor] = {}

    def of(self, backend: Backend, rows: Sequence[Row], sizes: NDArray[np.int64]) -> list[Tensor]:
        """The pixels of some rows, see `Backend.decode`; `sizes` [n, 2] are their index's.

        Raises:
            UndecodableError: for images that cannot be decoded.
            DataError: if a shard cannot be read.
        """
        # Two threads may decode the same image: it is the same twice, and harmless.
        new = [place for place, row in enumerate(rows) if row not in self._kept]
        encoded = [self._splits[task].read(row) for task, row in (rows[place] for place in new)]
        try:
            decoded = backend.decode(encoded, sizes[new])
        except UndecodableError as error:
            reasons = {new[place]: reason for place, reason in error.reasons.items()}
            raise UndecodableError(reasons) from None
        self._kept.update(zip((rows[place] for place in new), decoded, strict=True))
        return [self._kept[row] for row in rows]


def decoded_bytes(order: Order, splits: Mapping[int, Split], lanes: Sequence[int] | None) -> int:
    """Bytes of all images that some lanes (all if None) ever serve, decoded to 8-bit RGB."""
    pixels = 0
    for task, rows in order.lane_rows(lanes).items():
        height, width = (splits[task].index[side].astype(np.int64) for side in ("height", "width"))
        pixels += int(height[rows] @ width[rows])
    return _CHANNELS * pixels
