"""Whole numbers of very many images, in few bytes."""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.signedinteger[Any]]
"""Of as many bytes as they need: calculate with them in int64."""

AT_ONCE: Final = 1 << 14
"""Images that are looked at together, where all at once would take a multiple of their memory."""


def compact(numbers: Numbers) -> Numbers:
    """The same numbers [n] in 1, 2, 4 or 8 bytes each, as the largest of them needs."""
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    kinds = (np.iinfo(kind) for kind in (np.int8, np.int16, np.int32, np.int64))
    dtype = next(kind.dtype for kind in kinds if kind.min <= low and high <= kind.max)
    return numbers.astype(dtype, copy=False)
