"""The engine of replicated models: every rank holds the learner whole, and DDP joins gradients.

DDP averages the ranks' gradients, which gives the gradient of the global loss because every
rank's loss is written so that their mean is the global one (learner/gather.py).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from kaizen_dist.config import Config
from kaizen_dist.engine.native import NativeEngine
from kaizen_dist.engine.options import compile_backbones
from kaizen_dist.engine.process import Process
from kaizen_dist.learner.learner import Learner


class DDPEngine(NativeEngine):
    """See `engine.base.Engine`."""

    def __init__(self, config: Config, make: Callable[[], Learner], process: Process) -> None:
        super().__init__(config, make, process)
        self.learner = self.prepared().to(process.device)

    @override
    def begin_task(self, task: int, steps_per_epoch: int, total_steps: int) -> None:
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.learner.begin_task(first=task == 0)
        if self.config.parallel.compile:
            compile_backbones(self.learner)
        self.begin_optimizer()
        self.module = self.learner
        if self.process.world_size > 1:
            # Batch statistics are global already, or averaged before they are used. (Newer
            # versions of torch give the option another name, which older ones do not know.)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.module = DistributedDataParallel(
                    self.learner, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    @override
    def exchanging(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    @override
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.learner.state_dict().items():
            yield name, tensor.detach().cpu()
