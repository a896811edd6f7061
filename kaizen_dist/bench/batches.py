"""Batches that look like a run's and come from nowhere: for what is measured without a stream."""

import numpy as np
import torch

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.views.loader import Batch


def random_batch(config: Config, classes: int, context: RankContext) -> Batch:
    """A rank's part of a step with replay, on its device; equal at every call.

    A lone rank's batch is that of no other world size.
    """
    replayed = config.replay.batch_size if config.replay.fraction > 0 else 0
    count = (config.train.batch_size + replayed) // context.world_size
    size = config.views.size
    generator = torch.Generator().manual_seed(context.rank)
    return Batch(
        views=torch.randn(2, count, 3, size, size, generator=generator).to(context.device),
        labels=torch.randint(classes, (count,), generator=generator).to(context.device),
        ids=np.arange(count),
        task_images=config.train.batch_size // context.world_size,
    )
