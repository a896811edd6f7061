"""The engine of models that do not fit: FSDP2 cuts every parameter over the ranks.

Student, momentum network and teacher are cut alike, block by block, so that no more than one
block of a backbone is whole at a time. What a task needs anew (its teacher, and which parameters
are trained) is made in a whole learner in host memory, by the code that DDP uses as well, and is
cut thereafter. Alone there is nothing to cut, and the learner stays as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from typing_extensions import override

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.options import backbones, blocks, compile_backbones
from kaizen_dist.engine.torch_engine import NativeEngine
from kaizen_dist.learner.learner import Learner


class FSDPEngine(NativeEngine):
    """See `engine.base.Engine`."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.learner = self._spread(self.prepared())

    @override
    def begin_task(self, task: int, steps_per_epoch: int, total_steps: int) -> None:
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.module = self.learner = self._spread(self.renewed(task))
        self.begin_optimizer()

    @override
    @contextmanager
    def exchanging(self, last: bool) -> Iterator[None]:
        if isinstance(self.learner, FSDPModule):
            self.learner.set_requires_gradient_sync(last)
        yield

    @override
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.learner.state_dict().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.detach().cpu()

    def _spread(self, learner: Learner) -> Learner:
        """Cut a whole learner over the ranks, in place, and bring it to their devices."""
        device = self.context.device
        if self.context.world_size > 1:
            mesh = init_device_mesh(device.type, (self.context.world_size,))
            for part in _parts(learner):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
            # Evaluation asks for features outside of `forward`.
            register_fsdp_forward_method(learner, "embed")
            register_fsdp_forward_method(learner, "embed_before")
        learner.to(device)
        if self.config.parallel.compile:
            compile_backbones(learner)
        return learner


def _parts(learner: Learner) -> Iterator[Any]:
    """What is made whole at a time, inner parts before those around them."""
    for network in backbones(learner):
        yield from blocks(network)
    if learner.classifier is not None:
        yield learner.classifier
    yield learner
