"""Work whose result is needed later: on a GPU on a stream beside the one that goes on.

The teacher's answers are constants of the step, so a GPU that the student's kernels do not fill
can compute them meanwhile. On a CPU nothing is gained by it, and the work is done at once.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple[Tensor | None, ...])


def on_side_stream(work: Callable[[Tensor], T], given: Tensor) -> Callable[[], T]:
    """Begin `work(given)` where `given` lies; ask the result for its value once it is needed.

    Only for work without gradients. Nothing waits on the host.
    """
    if not given.is_cuda:
        done = work(given)
        return lambda: done
    here, there = torch.cuda.current_stream(given.device), _side_stream(given.device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        result = work(given)
    # The allocator must not give this memory to others before the side stream has read it.
    given.record_stream(there)

    def ask() -> T:
        here.wait_stream(there)
        for tensor in result:
            if tensor is not None:
                tensor.record_stream(here)
        return result

    return ask


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
