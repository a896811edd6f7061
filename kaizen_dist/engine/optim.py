"""Optimizers, the learning-rate schedule, and fp16 loss scaling without a host wait.

Learning rates are a closed form of the position in the task and are set before each step: there is
no scheduler whose state would need saving.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.sgd import sgd

from kaizen_dist.config.schema import OptimConfig

REFERENCE_BATCH = 256
"""Global batch for which `optim.lr` is meant."""


class LARS(SGD):
    """SGD with momentum on layer-wise rescaled gradients (You et al., arXiv 1708.03888).

    A weight w with gradient g goes on as (g + wd w) eta |w| / (|g| + wd |w| + eps). With `clip`
    the factor is at most the learning rate in force, over that rate (LARC). Left as they are,
    without weight decay: biases and norms (one dimension, with `exclude_1d`), and whatever has
    a norm or a gradient of 0. Gradients themselves are not changed.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the rescaled gradients.
        weight_decay: wd.
        eta: trust coefficient.
        clip: never exceed the plain learning rate.
        exclude_1d: leave parameters of at most one dimension out.
        eps: guards the division.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.02,
        clip: bool = True,
        exclude_1d: bool = True,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.eta, self.clip, self.exclude_1d, self.eps = eta, clip, exclude_1d, eps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            momenta: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in params]
            sgd(
                params,
                self._rescaled(params, group),
                momenta,
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                foreach=True,
            )
            if group["momentum"]:
                for p, buffer in zip(params, momenta, strict=True):
                    self.state[p]["momentum_buffer"] = buffer
        return loss

    def _rescaled(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The gradients as SGD shall see them."""
        grads = [p.grad for p in params if p.grad is not None]
        index = [i for i, p in enumerate(params) if p.ndim > 1 or not self.exclude_1d]
        if not index:
            return grads
        weights, chosen = [params[i] for i in index], [grads[i] for i in index]
        w_norm, g_norm = _norms(weights), _norms(chosen)
        decay = group["weight_decay"]
        factor = self.eta * w_norm / (g_norm + w_norm * decay + self.eps)
        if self.clip:
            factor = (factor / group["lr"]).clamp(max=1)
        # On the device throughout: a norm read on the host would make every step wait for it.
        active = (w_norm != 0) & (g_norm != 0)
        decays = torch.where(active, torch.full_like(factor, decay), 0).unbind()
        factors = torch.where(active, factor, 1).unbind()
        decayed = torch._foreach_add(chosen, torch._foreach_mul(weights, decays))
        for i, rescaled in zip(index, torch._foreach_mul(decayed, factors), strict=True):
            grads[i] = rescaled
        return grads


def _norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor as a whole, [len(tensors)], also of those cut over the ranks."""
    parts = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    norms = torch.stack(torch._foreach_norm(parts))
    first = tensors[0]
    if not isinstance(first, DTensor):
        return norms
    squares = norms.square()
    dist.all_reduce(squares, group=first.device_mesh.get_group())
    return squares.sqrt()


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig, batch_size: int) -> Optimizer:
    """The optimizer of one task, from `Learner.parameter_groups`.

    `batch_size` is the global batch without replay. Its learning rates are those at the peak;
    `set_learning_rates` before each step.
    """
    peak = peak_learning_rates(optim, batch_size)
    optimizer: Optimizer
    if optim.name == "lars":
        optimizer = LARS(groups, lr=peak.model, momentum=optim.momentum, eta=optim.eta)
    elif optim.name == "sgd":
        optimizer = SGD(groups, lr=peak.model, momentum=optim.momentum, foreach=True)
    else:
        optimizer = AdamW(groups, lr=peak.model, fused=True)
    set_learning_rates(optimizer, peak)
    return optimizer


class LearningRates(NamedTuple):
    """The rates of the two roles of parameter groups."""

    model: float
    classifier: float


def peak_learning_rates(optim: OptimConfig, batch_size: int) -> LearningRates:
    """The rates after warm-up; the model's is scaled by batch_size / 256 if asked for."""
    scale = batch_size / REFERENCE_BATCH if optim.scale_lr else 1.0
    return LearningRates(optim.lr * scale, optim.classifier_lr)


def learning_rates(optim: OptimConfig, batch_size: int, epoch: float, epochs: int) -> LearningRates:
    """The rates at `epoch` (from 0, whole or fractional; see `position`) of a task's `epochs`.

    Linear from `warmup_start_lr` to the peak, then a half cosine to `min_lr`. With
    `interval: epoch` the last epoch of the warm-up is at the peak already, as published.
    """
    warmup = optim.warmup_epochs
    climb = warmup - 1 if optim.interval == "epoch" else warmup

    def rate(peak: float) -> float:
        if epoch < warmup:
            done = min(epoch / climb, 1.0) if climb > 0 else 0.0
            return optim.warmup_start_lr + done * (peak - optim.warmup_start_lr)
        turn = math.pi * (epoch - warmup) / (epochs - warmup)
        return optim.min_lr + (peak - optim.min_lr) * (1 + math.cos(turn)) / 2

    return LearningRates(*(rate(peak) for peak in peak_learning_rates(optim, batch_size)))


def position(step: int, steps_per_epoch: int, interval: Literal["epoch", "step"]) -> float:
    """A task's step (from 0) as a place in epochs: whole, or to the step."""
    return step // steps_per_epoch if interval == "epoch" else step / steps_per_epoch


def set_learning_rates(optimizer: Optimizer, rates: LearningRates) -> None:
    """Write the rates into the optimizer's groups, by their role and layer."""
    for group in optimizer.param_groups:
        rate = rates.classifier if group["role"] == "classifier" else rates.model
        group["lr"] = rate * group.get("lr_scale", 1.0)


def skip_on_the_device(optimizer: Optimizer) -> None:
    """Make an optimizer undo a step with infinite gradients (fp16) on the device.

    torch's `GradScaler` reads `found_inf` on the host, which waits for the device at every step,
    unless the optimizer handles it by itself (as the fused ones do). Here its tensors are copied
    before the step and restored after it if `found_inf` says so. An optimizer of sharded parameters
    is left unchanged: its `found_inf` is sharded, too.
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
        # torch's SGD would request its fused kernel.
        taken.found_inf = None
        kept.update((tensor, tensor.detach().clone()) for tensor in tensors())

    @torch.no_grad()
    def undo(*_: Any) -> None:
        bad = found.pop() > 0
        for tensor in tensors():
            # A new state starts at zero.
            before = kept.get(tensor)
            tensor.copy_(
                torch.where(bad, torch.zeros_like(tensor) if before is None else before, tensor)
            )
        kept.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(undo)
