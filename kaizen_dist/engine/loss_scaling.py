"""fp16 without a wait in every step: a step with infinite gradients is undone where it was made.

torch's `GradScaler` reads on the host whether any gradient is infinite, which waits for the device,
unless the optimizer says that it looks by itself (as the fused ones do). This lets any do so: its
tensors are kept before the step, and come back after it where `found_inf` says so.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def skip_on_the_device(optimizer: Optimizer) -> None:
    """Let an optimizer look at `found_inf` (0 or 1, set by the scaler) by itself.

    One whose parameters are cut over the ranks stays as it is: its `found_inf` is, too.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    able = getattr(optimizer, "_step_supports_amp_scaling", False)
    if able or any(isinstance(p, DTensor) for p in params):
        return
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    kept: dict[Tensor, Tensor] = {}

    def tensors() -> list[Tensor]:
        states = [
            t for p in params for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor)
        ]
        return [p for p in params if p.grad is not None] + states

    found: list[Tensor] = []

    def keep(taken: Any, *_: Any) -> None:
        found.append(taken.found_inf)
        # torch's SGD takes it for a request to its fused kernel.
        taken.found_inf = None
        kept.update((tensor, tensor.detach().clone()) for tensor in tensors())

    @torch.no_grad()
    def undo(*_: Any) -> None:
        bad = found.pop() > 0
        for tensor in tensors():
            # A state that was not there before begins as zero.
            before = kept.get(tensor)
            tensor.copy_(
                torch.where(bad, torch.zeros_like(tensor) if before is None else before, tensor)
            )
        kept.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(undo)
