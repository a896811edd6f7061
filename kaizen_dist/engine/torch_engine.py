"""What the engines of torch's own have in common: one optimizer over the learner's parameters.

How the learner is spread over the ranks is a subclass's matter (engine/ddp.py, engine/fsdp.py).
Their states are alike, tensor by tensor, so that each goes on from what another has saved.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from kaizen_dist.engine.loss_scaling import skip_on_the_device
from kaizen_dist.engine.optim import build_optimizer
from kaizen_dist.engine.options import autocast
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses


class NativeEngine(Engine):
    """See `engine.base.Engine`."""

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
    def exchanging(self, last: bool) -> AbstractContextManager[Any]:
        """A context for one micro-batch: the ranks' gradients are joined in the `last` only."""

    def begin_optimizer(self) -> None:
        """A fresh optimizer for the learner as it is."""
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
            with self.exchanging(last=number == len(parts)):
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
        """What keeps the gradients of half precision in its range; elsewhere it does nothing."""
        enabled = self.config.parallel.precision == "fp16"
        return torch.amp.GradScaler(self.context.device.type, enabled=enabled)

    def _scaler_tensors(self) -> dict[str, Tensor]:
        """What changes of the scaler's state; nothing where it is off."""
        moving = ("scale", "_growth_tracker")
        state = self.scaler.state_dict()
        return {
            _SCALER + name: torch.tensor(state[name], dtype=torch.float64)
            for name in moving
            if name in state
        }


_SCALER = "scaler."
