"""Batch normalisation over the global batch (promise 2), on any device.

torch's SyncBatchNorm has no CPU kernel. This one combines the ranks' statistics with one small
collective forward and one backward, and equals plain BatchNorm over the concatenated batch up to
rounding.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen_dist.learner.precision import at_least_float32


class _Normalise(torch.autograd.Function):
    """(input, weight, bias, eps) to (output, global mean, global biased variance)."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        local = torch.stack(torch.batch_norm_update_stats(input, None, None, 0.0))
        parts = local.new_empty((dist.get_world_size() * 2, local.shape[1]))
        dist.all_gather_into_tensor(parts, local)
        means, variances = parts[::2], parts[1::2]
        # Equal parts: the variance is the mean within ranks plus that between their means.
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(input, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        input, weight, mean, var = ctx.saved_tensors
        # With constant statistics first, then the statistics' share: both need the same sums.
        ones = torch.ones_like(mean) if weight is None else weight
        straight, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], input, ones, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([to_bias, to_weight])
        dist.all_reduce(sums)
        sums /= input.numel() // input.shape[1] * dist.get_world_size()
        scale = torch.rsqrt(var + ctx.eps)
        slope = ones * scale.square() * sums[1]
        offset = ones * scale * sums[0] - slope * mean
        shape = [1, -1, *(1 for _ in input.shape[2:])]
        straight -= torch.addcmul(offset.view(shape), input, slope.view(shape))
        if weight is None:
            return straight, None, None, None
        return straight, to_weight, to_bias, None


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm with statistics over all ranks, which bring equally many rows.

    A norm may have parts (timm's has an activation), which then follow it.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        return _through_parts(self, self._normalised(input))

    def _normalised(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        # Statistics in half precision would be too coarse.
        wide = at_least_float32(input)
        out, mean, var = _Normalise.apply(wide, self.weight, self.bias, self.eps)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        self._track(mean, var * count / max(count - 1, 1))
        return out.to(input.dtype)

    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_var, self.momentum)


class _OnGPU(nn.SyncBatchNorm):
    """torch's, with the parts that a norm may have."""

    def forward(self, input: Tensor) -> Tensor:
        return _through_parts(self, super().forward(input))


def _through_parts(norm: nn.Module, out: Tensor) -> Tensor:
    for part in norm.children():
        out = part(out)
    return out


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every BatchNorm made global; parameters and buffers are the same tensors."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _globalised(child, device))
        else:
            synchronise(child, device)
    return module


def _globalised(norm: _BatchNorm, device: torch.device) -> _BatchNorm:
    twin = (_OnGPU if device.type == "cuda" else GlobalBatchNorm)(norm.num_features)
    # Parameters, buffers and settings are those of the original.
    vars(twin).update(vars(norm))
    return twin
