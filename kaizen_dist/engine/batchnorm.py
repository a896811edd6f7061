"""Batch normalisation over the global batch (promise 2), on any device.

torch's SyncBatchNorm has no CPU kernel. This one sums over ranks with a differentiable
all-reduce, in two passes (mean, then squared deviations), and equals plain BatchNorm over
the concatenated batch up to rounding.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """All-reduce whose backward is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # noqa: ARG004 - the signature is torch's
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm1d or 2d with statistics over all ranks; every rank brings as many rows."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1, *(1 for _ in axes[1:])]
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = _Sum.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        var = _Sum.apply((centred * centred).sum(axes)) / count
        self._track(mean.detach(), var.detach() * count / max(count - 1, 1))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out

    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_var, self.momentum)


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every BatchNorm made global; parameters and buffers are the same tensors."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _globalised(child))
        else:
            synchronise(child, device)
    return module


def _globalised(norm: _BatchNorm) -> GlobalBatchNorm:
    twin = GlobalBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    return twin.train(norm.training)
