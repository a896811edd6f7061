"""The interface of every engine: batches in, losses and an updated learner out.

The trainer calls `begin_task`, then `step` after `step`, and knows nothing else of how the learner
is distributed. An engine owns its learner and may rebuild it for each task. A subclass defines how
a loss becomes an update, and how the state is saved and restored.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.batchnorm import synchronise
from kaizen_dist.engine.divergence import FirstBad
from kaizen_dist.engine.optim import learning_rates, position, set_learning_rates
from kaizen_dist.engine.options import micro_batches, recompute_blocks, set_determinism
from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses
from kaizen_dist.views.loader import Batch


class Snapshot(Protocol):
    """A copy of the state, independent of the training that goes on."""

    def finite(self) -> bool:
        """Whether this rank's part of the state is finite."""
        ...

    def write(self, folder: Path) -> None:
        """Write the copy to an existing folder; all ranks together, also on a thread.

        Raises:
            WriteError: on all ranks, if one of them cannot write.
        """
        ...


class Engine(ABC):
    """Trains the learner that `make` builds (on the CPU, the same on every rank).

    `begin_task` sets `steps_per_epoch` and `total_steps` and restarts optimizer and schedule.
    """

    learner: Learner
    """Computes features and logits."""
    optimizer: Optimizer
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    """Steps at the beginning of the task in which the heads learn alone."""

    @classmethod
    def check(cls, config: Config, world_size: int) -> None:
        """Check the configuration before an engine is built.

        Raises:
            UsageError: naming the key and the cure.
        """
        parts = config.train.accumulate
        if config.lanes % (parts * world_size):
            fits = [n for n in range(1, config.lanes + 1) if config.lanes % (n * world_size) == 0]
            raise UsageError(
                f"train.accumulate: {config.lanes} lanes cannot be cut into {parts} micro-batches "
                f"on {world_size} ranks; values that fit: {', '.join(map(str, fits))} (lanes come "
                "from train.batch_size, replay.batch_size and train.lanes)"
            )
        parallel = config.parallel
        for name in ("side_stream", "cuda_graphs"):
            if getattr(parallel, name) and parallel.engine != "ddp":
                raise UsageError(
                    f"parallel.{name}: needs unsharded weights on every rank, which "
                    f"parallel.engine={parallel.engine} shards; use ddp, or switch it off"
                )
        refuse(
            parallel.compile and parallel.activation_checkpointing,
            "parallel.compile: torch cannot compile blocks that are computed twice without "
            "updating batch statistics twice; set parallel.activation_checkpointing=false or "
            "parallel.compile=false",
        )
        refuse(
            parallel.cuda_graphs and not parallel.compile,
            "parallel.cuda_graphs: the compiler records the graphs; set parallel.compile=true "
            "too, or parallel.cuda_graphs=false",
        )
        refuse(
            parallel.cuda_graphs and parallel.side_stream,
            "parallel.cuda_graphs: graphs are replayed on the stream of the step; set "
            "parallel.side_stream=false or parallel.cuda_graphs=false",
        )

    @classmethod
    @abstractmethod
    def state_format(cls, config: Config) -> str:
        """Name of the format of states within a task; engines of the same format read them."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        self.config = config
        self.make = make
        self.context = context
        set_determinism(config.parallel, context.device)
        self.first_bad = FirstBad(context)

    def begin_task(
        self,
        task: int,
        steps_per_epoch: int,
        total_steps: int,
        classes: KnownClasses | None = None,
    ) -> None:
        """Copy the task's teacher from the student, grow to the classes that are known now (None:
        as many as before), and build a new optimizer."""
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        warm = self.config.optim.warmup_heads if task == 0 else 0
        self.warmup_steps = round(warm * steps_per_epoch)
        self._leave_backbone(False)
        self.renew(task == 0, classes)

    @abstractmethod
    def renew(self, first: bool, classes: KnownClasses | None) -> None:
        """What `begin_task` does, of the `first` task or a later one."""

    @abstractmethod
    def update(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Losses:
        """Forward and backward of every micro-batch (views, labels), and one optimizer step with
        the mean of their gradients."""

    @abstractmethod
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the learner by name, unsharded on the CPU, one at a time.

        All ranks iterate together.
        """

    @abstractmethod
    def snapshot(self, within_task: bool) -> Snapshot:
        """A copy of the state: the learner, and within a task the optimizer as well."""

    @abstractmethod
    def restore(self, folder: Path, within_task: bool) -> None:
        """Load a snapshot from a folder.

        One from within a task is loaded after its `begin_task`, and contains its teacher; one from
        between two tasks before `begin_task`, which copies the teacher from it.
        """

    def step(self, batch: Batch, step: int) -> Losses:
        """One update on this rank's part of the task's step `step` (0-based)."""
        self._leave_backbone(step < self.warmup_steps)
        self.learner.train()
        optim = self.config.optim
        epoch = position(step, self.steps_per_epoch, optim.interval)
        rates = learning_rates(optim, self.config.train.batch_size, epoch, self.config.train.epochs)
        set_learning_rates(self.optimizer, rates)
        losses = self.update(self.parts(batch))
        self.first_bad.note(step, losses.total)
        self.after_step(step / self.total_steps)
        return losses

    def _leave_backbone(self, alone: bool) -> None:
        """Freeze the backbone and its slow copy while the heads learn `alone`, or let them move."""
        momentum = self.learner.momentum
        for owner in (self.learner, momentum) if momentum else (self.learner,):
            owner.backbone.frozen = alone

    def parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches (views, labels) of a batch, on this rank's device."""
        batch = batch.to(self.context.device, next(self.learner.parameters()).dtype)
        lanes = self.config.lanes // self.context.world_size
        return micro_batches(batch.views, batch.labels, lanes, self.config.train.accumulate)

    def after_step(self, progress: float) -> None:
        """Update the momentum network; see `Learner.after_step`."""
        self.learner.after_step(progress)

    def report(self, losses: Losses) -> dict[str, float]:
        """The global batch's losses as numbers: the mean over ranks of the returned ones."""
        values = self.context.mean(losses.stack().double()).tolist()
        named = dict(zip(losses.names(), values, strict=True))
        return {"loss": named.pop("total"), **named}

    @property
    def lr(self) -> float:
        """The learning rate of the last step (of all but the classifier)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def settle(self) -> None:
        """Average the ranks' batch statistics before the model is evaluated or saved.

        They differ only without `model.sync_bn`, where each rank's BatchNorm has seen its own part
        of the batch.
        """
        if self.config.model.sync_bn or self.context.world_size == 1:
            return
        for module in self.learner.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(self.context.mean(module.running_mean))
                assert module.running_var is not None
                module.running_var.copy_(self.context.mean(module.running_var))

    def prepared(self) -> Learner:
        """A new learner on the CPU, its modules replaced as the options require."""
        learner = self.make()
        if self.config.model.sync_bn and self.context.world_size > 1:
            synchronise(learner, self.context.device)
        if self.config.parallel.activation_checkpointing:
            recompute_blocks(learner.backbone)
        return learner

    def renewed(self, first: bool, classes: KnownClasses | None) -> Learner:
        """An unsharded learner on the CPU at the first step of a task: the current student, and
        the task's teacher copied from it. For engines whose own modules cannot be copied."""
        learner = self.prepared()
        learner.grow(self.learner.num_classes)
        state = self.full_state()
        learner.load_state_dict({n: t for n, t in state if not n.startswith("teacher.")})
        learner.begin_task(first, classes)
        return learner

    def student(self) -> dict[str, Tensor]:
        """The exported part, unsharded on the CPU: `backbone.*` and the classification heads."""
        parts = ("backbone.", "classifier.", "class_means.")
        # Each tensor is freed before the next is gathered.
        return {name: tensor for name, tensor in self.full_state() if name.startswith(parts)}


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """The losses of a step from those of its micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return Losses(*(torch.stack(terms).mean(0) for terms in zip(*parts, strict=True)))


def refuse(wrong: bool, message: str) -> None:
    """Raises UsageError with the message if something is wrong."""
    if wrong:
        raise UsageError(message)


def digest(state: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over every tensor of a state [(name, tensor on the CPU)], in the order of names."""
    parts = {}
    for name, tensor in state:
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)};"
        parts[name] = hashlib.sha256(header.encode() + content.tobytes()).digest()
    return hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest()
