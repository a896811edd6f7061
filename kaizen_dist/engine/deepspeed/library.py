"""Import DeepSpeed and connect it to the ranks' process group."""

import atexit
import contextlib
import os
import sys

import torch
import torch.distributed as dist

from kaizen_dist.common.errors import UsageError
from kaizen_dist.distributed.context import RankContext

# Read when DeepSpeed is imported, which would warn where there is no GPU.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
try:
    # Standard output is for results only.
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
            CheckpointCommitInfo,
            CheckpointEngine,
        )
except ModuleNotFoundError as error:
    raise UsageError(
        f"parallel.engine: deepspeed cannot be loaded ({error}); "
        "pip install 'kaizen-dist[deepspeed]', or set parallel.engine=fsdp"
    ) from None

__all__ = ["CheckpointCommitInfo", "CheckpointEngine", "deepspeed", "join"]


def join(context: RankContext) -> None:
    """Let DeepSpeed use the ranks' process group; a single rank gets one of its own."""
    if not dist.is_initialized():
        backend = "nccl" if context.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    # Used by inference only, and compiled with g++ and ninja unless declared absent.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False)
