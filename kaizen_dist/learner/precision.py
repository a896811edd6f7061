"""Full precision for formulas while networks compute in half (`parallel.precision`).

Autocast decides for the layers; formulas of losses and normalisations decide for themselves,
here: outside of autocast, on arguments of float32 at least.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, as float32 if it is of half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def no_loss(like: Tensor) -> Tensor:
    """The value of a term that is off, of float32 at least."""
    return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))


def full_precision(formula: Callable[P, T]) -> Callable[P, T]:
    """`formula`, computed in float32 at least on the tensors it is called with by position."""

    @wraps(formula)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        wide = (at_least_float32(a) if isinstance(a, Tensor) else a for a in args)
        # `meta` has shapes only, and no precision to switch.
        known = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if known else nullcontext():
            return formula(*wide, **kwargs)  # type: ignore[arg-type]

    return computed
