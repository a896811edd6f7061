"""The interface of what makes views, and the errors that it may end with.

A backend takes encoded images with the parameters of their views and returns views.
`torch_backend` does it with Pillow and torch on any machine, `dali_backend` with NVIDIA DALI on a
GPU or on the CPU; `choose` opens one of them. Both only apply the numbers of `recipe.py`, so their
views differ by rounding alone (docs/benchmarks/dali_parity.md).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.views.recipe import Parameters

CPU = torch.device("cpu")
Sizes: TypeAlias = NDArray[np.int64]
"""[n, 2]: height and width of images, by their index."""

_MEMORY_ERRORS = re.compile(
    r"out of memory|bad_alloc|can(?:'t|not) allocate|allocation failed|MemoryAllocation"
    r"|ALLOCATOR_FAILURE",
    re.IGNORECASE,
)
"""The words of CUDA, C++, torch, DALI (on a CPU and a GPU) and nvJPEG."""


class UndecodableError(Exception):
    """Images of a batch that do not decode; the caller, which knows their names, reports them."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"image {i} of the batch: {r}" for i, r in reasons.items()))
        self.reasons = dict(reasons)
        """The reason for each such image, by its position in the batch; at least one."""


class Backend(Protocol):
    """Makes views; safe to be called by several threads at once.

    A result is a function of the arguments alone: neither earlier calls nor other images of
    the batch matter. Views lie on the backend's device, complete, for the stream that is current
    for the caller; before another stream uses them, call `record_stream` there.
    """

    def views(self, encoded: Sequence[bytes], sizes: Sizes, parameters: Parameters) -> Tensor:
        """Both augmented views of n encoded images, normalised, [2, n, 3, size, size] float32.

        `parameters` were drawn for these `sizes`.

        Raises:
            UndecodableError: for all images that do not decode, or to another size.
        """
        ...

    def decode(self, encoded: Sequence[bytes], sizes: Sizes) -> list[Tensor]:
        """The pixels of n images, each [height, width, 3] uint8, where `views_of` takes them.

        Raises:
            UndecodableError: as `views`.
        """
        ...

    def views_of(self, pixels: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """`views` of images decoded by `decode`; the same bits."""
        ...

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        """The evaluation view of n encoded images, [n, 3, size, size] float32: resized,
        centre-cropped, normalised.

        Raises:
            UndecodableError: for all images that do not decode.
        """
        ...


def record_stream(views: Tensor) -> Tensor:
    """Mark views that were made on another stream as used by the current one.

    Otherwise the allocator would reuse their memory as soon as no name refers to them, although
    the current stream may still have to read them.
    """
    if views.is_cuda:
        views.record_stream(torch.cuda.current_stream(views.device))
    return views


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or its GPU has no memory left.

    DALI ends a run of its pipeline with a RuntimeError whatever the cause (2.4.0), and torch's
    own error is one as well, so the message decides.
    """
    return isinstance(error, MemoryError) or _MEMORY_ERRORS.search(str(error)) is not None


@contextmanager
def explain_out_of_memory(batch_size: str) -> Iterator[None]:
    """For making the views of a batch, whose size is set by the key `batch_size`.

    Raises:
        KaizenError: in place of an out-of-memory error, with the cure.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # A message of DALI has many lines, with the location of its operator.
        lines = str(error).splitlines() or [type(error).__name__]
        line = next(filter(_MEMORY_ERRORS.search, lines), lines[0])
        raise KaizenError(
            f"too little memory to make the views of a batch ({line}): "
            f"lower views.workers, views.prefetch, views.memory_budget or {batch_size}"
        ) from error
