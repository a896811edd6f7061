"""The engine of DeepSpeed: ZeRO shards the optimizer's state, then gradients, then parameters.

As under FSDP a task's learner is built unsharded in host memory and then handed over. Within a task
DeepSpeed saves its own format (files.py); between two tasks the state is plain tensors, which every
engine reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import Engine, Snapshot, mean_losses, refuse
from kaizen_dist.engine.checkpoint.tensors import TensorSnapshot, learner_tensors, restore
from kaizen_dist.engine.deepspeed import files
from kaizen_dist.engine.deepspeed.library import deepspeed, join
from kaizen_dist.engine.deepspeed.settings import deepspeed_config
from kaizen_dist.engine.optim import build_optimizer
from kaizen_dist.engine.options import autocast, compile_backbones
from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.parameter_groups import BACKBONE
from kaizen_dist.learner.terms import Losses


class ZeROEngine(Engine):
    """See `engine.base.Engine`."""

    @override
    @classmethod
    def check(cls, config: Config, world_size: int) -> None:
        super().check(config, world_size)
        parallel = config.parallel
        refuse(
            config.optim.name == "lars" and parallel.zero_stage > 0,
            f"optim.name: lars needs the norm of every unsharded parameter, and "
            f"parallel.zero_stage={parallel.zero_stage} of DeepSpeed flattens and shards them, "
            "which would silently train another model; set parallel.engine=fsdp (or ddp), "
            "parallel.zero_stage=0, or optim.name=adamw or sgd",
        )
        refuse(
            parallel.precision == "fp16",
            "parallel.precision: DeepSpeed's fp16 keeps weights and batch statistics in half "
            "precision too; set parallel.precision=bf16, or parallel.engine=ddp or fsdp",
        )
        refuse(
            parallel.compile and parallel.zero_stage == 3,
            "parallel.compile: DeepSpeed's stage 3 fetches each layer's parameters in a way that "
            "makes torch.compile recompile repeatedly; set parallel.engine=fsdp, "
            "parallel.zero_stage=2 or parallel.compile=false",
        )
        deepspeed_config(config, world_size)

    @override
    @classmethod
    def state_format(cls, config: Config) -> str:
        return f"deepspeed-zero{config.parallel.zero_stage}"

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        super().__init__(config, make, context)
        self.sharded = config.parallel.zero_stage == 3
        """Whether parameters are sharded outside of their layer's computations."""
        join(context)
        self._hand_over(self.prepared())

    @override
    def renew(self, first: bool, classes: KnownClasses | None) -> None:
        learner = self.renewed(first, classes)
        self.module.destroy()
        self._hand_over(learner)

    @override
    def update(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Losses:
        losses = []
        for views, labels in parts:
            losses.append(self.module(views, labels))
            # Divides by the number of micro-batches; `step` does nothing before the last.
            self.module.backward(losses[-1].total)
            self.module.step()
        return mean_losses(losses)

    @override
    def after_step(self, progress: float) -> None:
        with _own_parts(self.learner) if self.sharded else nullcontext():
            super().after_step(progress)

    @override
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self.learner.named_parameters())
        for name, tensor in self.learner.state_dict().items():
            with self._whole(parameters.get(name)):
                # Copied, for it is unsharded only for the moment.
                whole = parameters.get(name, tensor).detach().cpu().clone()
            yield name, whole

    @override
    def snapshot(self, within_task: bool) -> Snapshot:
        if within_task:
            return files.snapshot_of(self.module)
        return TensorSnapshot(learner_tensors(self.full_state()), self.context)

    @override
    def restore(self, folder: Path, within_task: bool) -> None:
        if within_task:
            files.load(self.module, folder, self.context.world_size)
            return
        learner = self.prepared()
        restore(folder, learner, None, self.context)
        self.module.destroy()
        self._hand_over(learner)

    def _hand_over(self, learner: Learner) -> None:
        """Give an unsharded learner on the CPU to DeepSpeed, with a new optimizer."""
        config, device = self.config, self.context.device
        settings = deepspeed_config(config, self.context.world_size)
        optimizer = build_optimizer(
            learner.parameter_groups(config.optim), config.optim, config.train.batch_size
        )
        optimizer.register_step_pre_hook(partial(_leave_backbone, learner))
        if self.sharded:
            # Parameter by parameter: the unsharded learner need not fit the device.
            deepspeed.zero.Init(module=learner, config_dict_or_path=settings)
            for buffer in learner.buffers():
                buffer.data = buffer.data.to(device)
        forward = learner.forward

        def in_precision(views: Tensor, labels: Tensor) -> Losses:
            # Inside of the learner, because DeepSpeed's own forward switches autocast off.
            with autocast(config.parallel, device):
                return forward(views, labels)

        learner.forward = in_precision  # type: ignore[method-assign]
        if config.parallel.compile:
            compile_backbones(learner)
        self.module, self.optimizer, _, _ = deepspeed.initialize(
            model=learner, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.learner = learner

    def _whole(self, parameter: Tensor | None) -> AbstractContextManager[Any]:
        """A context in which a parameter (None = a buffer) is unsharded on every rank."""
        if not self.sharded or parameter is None:
            return nullcontext()
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter])
        return gathered


def _leave_backbone(learner: Learner, optimizer: Optimizer, *_: Any) -> None:
    """DeepSpeed makes zeros of gradients that there are not, by which an optimizer would step."""
    for group in optimizer.param_groups if learner.backbone.frozen else ():
        for parameter in group["params"] if group["role"] == BACKBONE else ():
            parameter.grad = None


@contextmanager
def _own_parts(learner: Learner) -> Iterator[None]:
    """Every parameter holds this rank's shard.

    Equal shapes are sharded alike, so that an elementwise operation on parameters (a moving average
    of one in the other) can be computed on the shards.
    """
    kept = [(parameter, parameter.data) for parameter in learner.parameters()]
    for parameter, _ in kept:
        parameter.data = parameter.ds_tensor.data  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for parameter, placeholder in kept:
            parameter.data = placeholder
