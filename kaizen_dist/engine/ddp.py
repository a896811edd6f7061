"""The engine of replicated models: every rank holds the learner whole, and DDP joins gradients.

DDP averages the ranks' gradients, which gives the gradient of the global loss because every
rank's loss is written so that their mean is the global one (learner/gather.py).

Its buckets have to be the same at every step. By default DDP joins all gradients in one piece at
its first step and in other pieces from then on; with more than two ranks these are sums in another
order, so that a run that begins again within a task would not go on bit for bit. It does so only
where it takes every parameter to be used, which is why it is told to look for unused ones.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.options import compile_backbones
from kaizen_dist.engine.torch_engine import NativeEngine
from kaizen_dist.learner.learner import Learner


class DDPEngine(NativeEngine):
    """See `engine.base.Engine`."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.learner = self.prepared().to(context.device)

    @override
    def begin_task(self, task: int, steps_per_epoch: int, total_steps: int) -> None:
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.learner.begin_task(first=task == 0)
        if self.config.parallel.compile:
            compile_backbones(self.learner, self.config.parallel.cuda_graphs)
        self.begin_optimizer()
        self.module = self.learner
        if self.context.world_size > 1:
            # Batch statistics are global already, or averaged before they are used. (Newer
            # versions of torch give the option another name, which older ones do not know.)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.module = DistributedDataParallel(
                    self.learner,
                    broadcast_buffers=False,
                    find_unused_parameters=True,
                    gradient_as_bucket_view=True,
                )
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            # Of 1x1 convolutions, whose layout can be told in two ways.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

    @override
    def exchanging(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    @override
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.learner.state_dict().items():
            yield name, tensor.detach().cpu()
