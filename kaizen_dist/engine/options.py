"""Options of every engine: determinism, precision, micro-batches, recomputation, compilation.

They change how a learner is computed, never the names of its parameters, nor the values of losses
(but for `parallel.precision` and `train.accumulate`).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.learner.backbone import Backbone
from kaizen_dist.learner.learner import Learner

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_VARIANTS = 64
"""Compiled variants of one function: student, momentum network and teacher, training or not, with
and without replay each need one, and torch silently stops compiling beyond its own limit of 8."""


def backbones(learner: Learner) -> list[Backbone]:
    """Those of the student, the momentum network and the teacher."""
    return [module for module in learner.modules() if isinstance(module, Backbone)]


# ---- determinism ------------------------------------------------------------------------


def set_determinism(config: ParallelConfig, device: torch.device) -> None:
    """Set for this process whether a GPU computes the same bits every time, and in TF32 or not.

    A CPU always computes the same bits. On a GPU some algorithms add in an order that varies from
    run to run (cuDNN's gradients of float32 convolutions do, seen on an H100), so that a resumed
    run would not be bit-exact. And torch's float32 convolutions use TF32 (10 bits of mantissa) by
    default, its matrix products do not. cuBLAS reads its setting once, before its first product.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    # It would choose algorithms by measured times, which vary.
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    # It would fill all new memory, although nothing reads memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The gradients of flash (half precision) and math (float32) attention are deterministic.
    torch.backends.cuda.enable_cudnn_sdp(not config.deterministic)
    torch.backends.cuda.enable_mem_efficient_sdp(not config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# ---- precision ----------------------------------------------------------------------------


def autocast(config: ParallelConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The context that the learner's forward pass runs in."""
    if config.precision == "fp32":
        return nullcontext()
    # Without its cache: a copy of a weight must not outlive the shard it was made from.
    return torch.autocast(device.type, _HALF[config.precision], cache_enabled=False)


# ---- micro-batches ------------------------------------------------------------------------


def micro_batches(
    views: Tensor, labels: Tensor, lanes: int, parts: int
) -> list[tuple[Tensor, Tensor]]:
    """A rank's views [2, n, ...] and labels [n] of `lanes` lanes, cut into `parts` of equal size.

    Part m takes every `parts`-th lane from the m-th on. Counted over all ranks these are the
    same lanes at every world size, so that a micro-batch means the same images everywhere.
    """
    if parts == 1:
        return [(views, labels)]
    by_lane = (lanes // parts, parts, -1)
    views, labels = views.unflatten(1, by_lane), labels.unflatten(0, by_lane)
    return [(views[:, :, m].flatten(1, 2), labels[:, m].flatten()) for m in range(parts)]


# ---- recomputation ------------------------------------------------------------------------


class _Recomputed:
    """The forward of a block that keeps its input only, and runs again in the backward pass.

    A plain attribute of the block rather than a module around it: names stay as they were, and
    a copy of the block gets a forward of its own.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        forward = partial(type(self._block).forward, self._block, **options)
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _spare_statistics(self._block)


@contextmanager
def _spare_statistics(block: nn.Module) -> Iterator[None]:
    """Let the second pass update copies of the running statistics, which the first has updated."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, *named) for norm in norms for named in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def recompute_blocks(backbone: Backbone) -> None:
    """Keep only the inputs of a backbone's blocks until the backward pass."""
    for block in backbone.blocks():
        block.forward = _Recomputed(block)


# ---- compiling ----------------------------------------------------------------------------


def compile_backbones(learner: Learner, cuda_graphs: bool = False) -> None:
    """Compile the backbones in place: modules and names stay. Losses and collectives do not
    gain by it and stay as they are.

    With `cuda_graphs` those without gradients are replayed as graphs. The student is not: both
    views add to the same gradients, which torch's graphs get wrong when the second pass takes
    the memory of the first (pytorch issue 169545).
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for network in backbones(learner):
        network.replayed = cuda_graphs and not any(p.requires_grad for p in network.parameters())
        if network.replayed:
            network.network.compile(mode="reduce-overhead")
        else:
            network.compile()
