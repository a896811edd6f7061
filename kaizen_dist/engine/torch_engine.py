"""The engines that use torch alone: replicated (DDP) and sharded (FSDP2) parameters.

Their saved states have the same tensors, so that each can resume from the other's.

DDP averages the ranks' gradients, which gives the gradient of the global loss because every rank's
loss is written so that their mean is the global one (learner/gather.py). Its buckets have to be the
same at every step. By default DDP reduces all gradients in one bucket at its first step and in
other buckets from then on; with more than two ranks these sum in another order, so that a run
resumed within a task would not be bit-exact. It does so only if it assumes that every parameter is
used, which is why it is told to look for unused ones.

FSDP shards every parameter of student, momentum network and teacher over the ranks, block by block,
so that no more than one block of a backbone is unsharded at a time. What a task changes (its
teacher, and which parameters are trained) is built in an unsharded learner in host memory, by the
code that DDP uses as well, and sharded afterwards. A single rank shards nothing.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from typing_extensions import override

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Engine, mean_losses
from kaizen_dist.engine.checkpoint.tensors import (
    TensorSnapshot,
    learner_tensors,
    optimizer_tensors,
    restore,
)
from kaizen_dist.engine.optim import build_optimizer, skip_on_the_device
from kaizen_dist.engine.options import autocast, backbones, compile_backbones
from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses

_SCALER = "scaler."


class TorchEngine(Engine):
    """One optimizer over the learner's parameters, however these are held."""

    module: nn.Module
    """The learner as it is called in a training step."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.scaler = self._fresh_scaler()

    @override
    @classmethod
    def state_format(cls, config: Config) -> str:
        return "tensors"

    @abstractmethod
    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """A context for one micro-batch: gradients are averaged over ranks in the `last` only."""

    def begin_optimizer(self) -> None:
        """Build a new optimizer for the learner."""
        self.optimizer = build_optimizer(
            self.learner.parameter_groups(self.config.optim),
            self.config.optim,
            self.config.train.batch_size,
        )
        self.scaler = self._fresh_scaler()
        if self.scaler.is_enabled():
            skip_on_the_device(self.optimizer)

    @override
    def update(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, (views, labels) in enumerate(parts, start=1):
            with self.gradient_sync(last=number == len(parts)):
                with autocast(self.config.parallel, self.context.device):
                    losses.append(self.module(views, labels))
                self.scaler.scale(losses[-1].total / len(parts)).backward()
        self.scaler.unscale_(self.optimizer)
        if self.config.optim.clip_norm is not None:
            trained = (p for group in self.optimizer.param_groups for p in group["params"])
            clip_grad_norm_(trained, self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return mean_losses(losses)

    @override
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.learner.state_dict().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.detach().cpu()

    @override
    def snapshot(self, within_task: bool) -> TensorSnapshot:
        tensors = learner_tensors(self.learner.state_dict().items())
        if within_task:
            tensors |= optimizer_tensors(self.learner, self.optimizer) | self._scaler_tensors()
        return TensorSnapshot(tensors, self.context)

    @override
    def restore(self, folder: Path, within_task: bool) -> None:
        if not within_task:
            restore(folder, self.learner, None, self.context)
            return
        scaler = self._scaler_tensors()
        restore(folder, self.learner, self.optimizer, self.context, scaler)
        values = {name.removeprefix(_SCALER): tensor.item() for name, tensor in scaler.items()}
        self.scaler.load_state_dict(self.scaler.state_dict() | values)

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; disabled for other precisions."""
        enabled = self.config.parallel.precision == "fp16"
        return torch.amp.GradScaler(self.context.device.type, enabled=enabled)

    def _scaler_tensors(self) -> dict[str, Tensor]:
        """The variable part of the scaler's state; empty if it is disabled."""
        state = self.scaler.state_dict()
        return {
            _SCALER + name: torch.tensor(state[name], dtype=torch.float64)
            for name in ("scale", "_growth_tracker")
            if name in state
        }


class DDPEngine(TorchEngine):
    """`parallel.engine=ddp`: every rank holds the whole learner."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.learner = self.prepared().to(context.device)

    @override
    def renew(self, first: bool, classes: KnownClasses | None) -> None:
        self.learner.begin_task(first, classes)
        if self.config.parallel.compile:
            compile_backbones(self.learner, self.config.parallel.cuda_graphs)
        self.begin_optimizer()
        self.module = self.learner
        if self.context.world_size > 1:
            # Batch statistics are global already, or averaged before they are used. (Newer
            # versions of torch rename the option; older ones do not have the new name.)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.module = DistributedDataParallel(
                    self.learner,
                    broadcast_buffers=False,
                    find_unused_parameters=True,
                    gradient_as_bucket_view=True,
                )
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            # About 1x1 convolutions, whose layout has two equivalent strides.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

    @override
    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


class FSDPEngine(TorchEngine):
    """`parallel.engine=fsdp`: every rank holds its shard of each parameter."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.learner = self._sharded(self.prepared())

    @override
    def renew(self, first: bool, classes: KnownClasses | None) -> None:
        self.module = self.learner = self._sharded(self.renewed(first, classes))
        self.begin_optimizer()

    @override
    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        if isinstance(self.learner, FSDPModule):
            self.learner.set_requires_gradient_sync(last)
        yield

    def _sharded(self, learner: Learner) -> Learner:
        """Shard a learner over the ranks, in place, and move it to their devices."""
        device = self.context.device
        if self.context.world_size > 1:
            mesh = init_device_mesh(device.type, (self.context.world_size,))
            for part in _units(learner):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
            # Evaluation calls these instead of `forward`.
            register_fsdp_forward_method(learner, "embed")
            register_fsdp_forward_method(learner, "embed_before")
        learner.to(device)
        if self.config.parallel.compile:
            compile_backbones(learner)
        return learner


def _units(learner: Learner) -> Iterator[Any]:
    """The modules that are unsharded at a time, inner ones before those that contain them."""
    for network in backbones(learner):
        yield from network.blocks()
    if learner.classifier is not None:
        yield learner.classifier
    yield learner
