"""A side stream: on a GPU, work whose result is needed later runs beside the main stream.

The teacher's output is constant within a step, so a GPU that the student's kernels do not fill
can compute it at the same time. On a CPU the work is done at once.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=tuple[Tensor | None, ...])


def on_side_stream(work: Callable[[Tensor], T], given: Tensor) -> Callable[[], T]:
    """Start `work(given)` on the device of `given`; call the result to get its value.

    Only for work without gradients. The host waits for nothing.
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
