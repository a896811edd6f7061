"""What every engine is to the trainer: batches in, losses and an updated learner out.

The trainer calls `begin_task`, then `step` after `step`, and knows nothing else of how the
learner is spread over the ranks. An engine owns its learner: it may have to build it anew for
each task. What is the same for all engines stands here; a subclass says how a loss becomes an
update, and how the state of a run leaves the ranks and comes back to them.
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
from kaizen_dist.engine.determinism import settle
from kaizen_dist.engine.divergence import FirstBad
from kaizen_dist.engine.optim import learning_rates, position, set_learning_rates
from kaizen_dist.engine.options import micro_batches, recompute_blocks
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.terms import Losses
from kaizen_dist.views.loader import Batch


class Snapshot(Protocol):
    """A copy of the state as it was when it was taken; training may go on meanwhile."""

    def finite(self) -> bool:
        """Whether all numbers of this rank's part are finite."""
        ...

    def write(self, folder: Path) -> None:
        """All ranks together: leave the copy in an existing folder. May run on a thread.

        Raises:
            WriteError: on all ranks, if one of them cannot write.
        """
        ...


class Engine(ABC):
    """Steps the learner that `make` builds (on the CPU, the same on every rank).

    `steps_per_epoch` and `total_steps` of a task come with `begin_task`; the optimizer and
    the schedule begin afresh with each.
    """

    learner: Learner
    """To be asked for features and logits."""
    optimizer: Optimizer
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def check(cls, config: Config, world_size: int) -> None:
        """Everything that can be known to be wrong before an engine is built.

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
        for name, on in (
            ("parallel.side_stream", config.parallel.side_stream),
            ("parallel.cuda_graphs", config.parallel.cuda_graphs),
        ):
            if on and config.parallel.engine != "ddp":
                raise UsageError(
                    f"{name}: needs weights that are whole on every rank, which "
                    f"parallel.engine={config.parallel.engine} cuts; use ddp, or switch it off"
                )
        if config.parallel.compile and config.parallel.activation_checkpointing:
            raise UsageError(
                "parallel.compile: torch cannot compile blocks that are computed twice without "
                "moving batch statistics twice; set parallel.activation_checkpointing=false or "
                "parallel.compile=false"
            )
        if config.parallel.cuda_graphs and not config.parallel.compile:
            raise UsageError(
                "parallel.cuda_graphs: it is the compiler that records graphs; set "
                "parallel.compile=true too, or parallel.cuda_graphs=false"
            )
        if config.parallel.cuda_graphs and config.parallel.side_stream:
            raise UsageError(
                "parallel.cuda_graphs: graphs are replayed on the stream of the step; set "
                "parallel.side_stream=false or parallel.cuda_graphs=false"
            )

    @classmethod
    @abstractmethod
    def state_format(cls, config: Config) -> str:
        """Which engines can go on from a state saved within a task: those of the same format."""

    def __init__(self, config: Config, make: Callable[[], Learner], context: RankContext) -> None:
        self.config = config
        self.make = make
        self.context = context
        settle(config.parallel, context.device)
        self.first_bad = FirstBad(context)

    @abstractmethod
    def begin_task(self, task: int, steps_per_epoch: int, total_steps: int) -> None:
        """Take the task's teacher from the student as it is, and build a fresh optimizer."""

    @abstractmethod
    def update(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Losses:
        """Forward and backward of every micro-batch (views, labels), and one step of the
        optimizer, whose learning rates are set, along the mean of their gradients."""

    @abstractmethod
    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the learner by name, whole and on the CPU, one at a time.

        All ranks must go through it together.
        """

    @abstractmethod
    def snapshot(self, within_task: bool) -> Snapshot:
        """The state now: the learner, and within a task the optimizer as well."""

    @abstractmethod
    def restore(self, folder: Path, within_task: bool) -> None:
        """Bring back what a snapshot left in a folder.

        One taken within a task comes after its `begin_task`, and brings its teacher; one taken
        between two tasks comes before `begin_task`, which takes the teacher from it.
        """

    def step(self, batch: Batch, step: int) -> Losses:
        """One update on this rank's part of the task's step `step` (0-based)."""
        self.learner.train()
        optim = self.config.optim
        epoch = position(step, self.steps_per_epoch, optim.interval)
        rates = learning_rates(optim, self.config.train.batch_size, epoch, self.config.train.epochs)
        set_learning_rates(self.optimizer, rates)
        losses = self.update(self.parts(batch))
        self.first_bad.note(step, losses.total)
        self.after_step(step / self.total_steps)
        return losses

    def parts(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches (views, labels) of a batch, on this rank's device."""
        batch = batch.to(self.context.device, next(self.learner.parameters()).dtype)
        lanes = self.config.lanes // self.context.world_size
        return micro_batches(batch.views, batch.labels, lanes, self.config.train.accumulate)

    def after_step(self, progress: float) -> None:
        """Move the momentum network along; see `Learner.after_step`."""
        self.learner.after_step(progress)

    def report(self, losses: Losses) -> dict[str, float]:
        """The global batch's losses as numbers: the mean over ranks of what each returned."""
        values = self.context.mean(losses.stack().double()).tolist()
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
        if self.config.model.sync_bn or self.context.world_size == 1:
            return
        for module in self.learner.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(self.context.mean(module.running_mean))
                assert module.running_var is not None
                module.running_var.copy_(self.context.mean(module.running_var))

    def prepared(self) -> Learner:
        """A learner as it was made, on the CPU, with what the options ask of its modules."""
        learner = self.make()
        if self.config.model.sync_bn and self.context.world_size > 1:
            synchronise(learner, self.context.device)
        if self.config.parallel.activation_checkpointing:
            recompute_blocks(learner.backbone)
        return learner

    def renewed(self, task: int) -> Learner:
        """A whole learner on the CPU at the first step of a task: the student as it is now, and
        the task's teacher taken from it. For engines whose own modules cannot be copied."""
        learner = self.prepared()
        state = self.full_state()
        learner.load_state_dict({n: t for n, t in state if not n.startswith("teacher.")})
        learner.begin_task(first=task == 0)
        return learner

    def student(self) -> dict[str, Tensor]:
        """The deployable part, whole and on the CPU: `backbone.*`, and what may answer."""
        parts = ("backbone.", "classifier.", "class_means.")
        # Each tensor is let go before the next is gathered.
        return {name: tensor for name, tensor in self.full_state() if name.startswith(parts)}


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """The losses of a step from those of its micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return Losses(*(torch.stack(terms).mean(0) for terms in zip(*parts, strict=True)))


def digest(state: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over every tensor of a state [(name, tensor on the CPU)], in the order of names."""
    parts = {}
    for name, tensor in state:
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)};"
        parts[name] = hashlib.sha256(header.encode() + content.tobytes()).digest()
    return hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest()
