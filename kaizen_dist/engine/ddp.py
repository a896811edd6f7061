"""The engine of replicated models: one step of a learner on every rank with DDP.

An engine takes batches to losses and an updated learner; nothing else knows how the ranks'
gradients meet. DDP averages them, which is the gradient of the global loss because every
rank's loss is written so that their mean is the global one (learner/gather.py).
"""

import warnings

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kaizen_dist.config import Config
from kaizen_dist.engine.batchnorm import synchronise
from kaizen_dist.engine.optim import build_optimizer, learning_rates, position, set_learning_rates
from kaizen_dist.engine.process import Process
from kaizen_dist.learner.learner import Learner, Losses
from kaizen_dist.views.loader import Batch


class DDPEngine:
    """Steps a learner that every rank holds whole.

    `steps_per_epoch` and `total_steps` of a task come with `begin_task`; the optimizer and
    the schedule begin afresh with each.
    """

    def __init__(self, config: Config, learner: Learner, process: Process) -> None:
        self.config = config
        self.process = process
        learner.to(process.device)
        if config.model.sync_bn and process.world_size > 1:
            synchronise(learner, process.device)
        self.learner = learner

    def begin_task(
        self, task: int, steps_per_epoch: int, total_steps: int, take_teacher: bool
    ) -> None:
        """A task's first step, or its first after a resume (which brings its own teacher)."""
        if take_teacher:
            self.learner.begin_task(first=task == 0)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.optimizer = build_optimizer(
            self.learner.parameter_groups(self.config.optim),
            self.config.optim,
            self.config.train.batch_size,
        )
        self.module: nn.Module = self.learner
        if self.process.world_size > 1:
            # Batch statistics are global already, or averaged before they are used. (Newer
            # versions of torch give the option another name, which older ones do not know.)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.module = DistributedDataParallel(self.learner, broadcast_buffers=False)

    def step(self, batch: Batch, step: int) -> Losses:
        """One update on this rank's part of the task's step `step` (0-based)."""
        self.learner.train()
        optim = self.config.optim
        epoch = position(step, self.steps_per_epoch, optim.interval)
        rates = learning_rates(optim, self.config.train.batch_size, epoch, self.config.train.epochs)
        set_learning_rates(self.optimizer, rates)
        dtype = next(self.learner.parameters()).dtype
        batch = batch.to(self.process.device, dtype)
        losses: Losses = self.module(batch.views, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()
        self.learner.after_step(step / self.total_steps)
        return losses

    def report(self, losses: Losses) -> dict[str, float]:
        """The global batch's losses as numbers: the mean over ranks of what each returned."""
        values = self.process.mean(losses.stack().double()).tolist()
        named = dict(zip(losses.names(), values, strict=True))
        return {"loss": named.pop("total"), **named}

    @property
    def lr(self) -> float:
        """The learning rate of the last step (of all but the classifier)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def settle(self) -> None:
        """Make the ranks' buffers equal before the model is measured or saved.

        They differ only without `model.sync_bn`, where each rank's BatchNorm has seen its
        own part of the batch; the mean over ranks is what stands for the model.
        """
        if self.config.model.sync_bn or self.process.world_size == 1:
            return
        for module in self.learner.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(self.process.mean(module.running_mean))
                assert module.running_var is not None
                module.running_var.copy_(self.process.mean(module.running_var))
