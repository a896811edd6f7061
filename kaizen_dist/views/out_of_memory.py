"""Too little memory, told apart from images that are bad.

DALI ends a run of its pipeline with a RuntimeError whatever the cause (2.4.0), and torch's own
error is one as well, so the words decide.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kaizen_dist.common.errors import KaizenError

_WORDS = re.compile(
    r"out of memory|bad_alloc|can(?:'t|not) allocate|allocation failed|MemoryAllocation"
    r"|ALLOCATOR_FAILURE",
    re.IGNORECASE,
)
"""Those of CUDA, C++, torch and DALI on a CPU and a GPU, and nvJPEG."""


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that the machine or its GPU has no memory left."""
    return isinstance(error, MemoryError) or _WORDS.search(str(error)) is not None


@contextmanager
def named(batch_size: str) -> Iterator[None]:
    """Views are made in it; `batch_size` is the key of their number.

    Raises:
        KaizenError: in place of what says that there is too little memory, with the cure.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        # DALI's words are many lines, with the place of its operator.
        lines = str(error).splitlines() or [type(error).__name__]
        words = next(filter(_WORDS.search, lines), lines[0])
        raise KaizenError(
            f"too little memory to make the views of a batch ({words}): "
            f"lower views.workers, views.prefetch, views.memory_budget or {batch_size}"
        ) from error
