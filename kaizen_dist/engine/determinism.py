"""How a GPU computes: the same bits every time or the fastest way, in float32 or in TF32.

A CPU computes the same bits anyway. On a GPU some algorithms add in an order that differs from run
to run (cuDNN's gradients of float32 convolutions do, seen on an H100), so that a run which was
killed would not go on bit for bit. And what torch calls float32 is by default TF32 (10 bits of
mantissa) in convolutions, but not in matrix products.
"""

import os

import torch

from kaizen_dist.config.schema import ParallelConfig


def settle(config: ParallelConfig, device: torch.device) -> None:
    """Set both for this process. cuBLAS looks only once, before its first product."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    # It would choose among algorithms by their times, which differ.
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    # It would write to all new memory, to the same end where what is read was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Of attention, flash (half precision) and plain (float32) have gradients that repeat.
    torch.backends.cuda.enable_cudnn_sdp(not config.deterministic)
    torch.backends.cuda.enable_mem_efficient_sdp(not config.deterministic)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
