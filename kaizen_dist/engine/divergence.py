"""Diverged training: its state is never saved, and the message tells how to go on.

A non-finite loss is recorded on the device at every step (`Engine.step`), read when a row is logged
or a state is to be saved, and ends the run on all ranks alike. A step with a finite loss may still
leave a model that is not: every copy is checked before it becomes a checkpoint. And no learning
rate can resume from a checkpoint right before a step with a non-finite loss: it is set aside, so
that the one before it is the newest.
"""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from kaizen_dist.common.errors import DivergedError, KaizenError
from kaizen_dist.common.files import writing
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.checkpoint import layout


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors are finite; of sharded ones, this rank's shard."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return all(bool(t.isfinite().all()) for t in local if t.is_floating_point())


class FirstBad:
    """The first step of a task with a non-finite loss, kept on the device of the losses."""

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._step = torch.full((1,), _NEVER, device=context.device)

    def note(self, step: int, loss: Tensor) -> None:
        """Check this rank's loss of a step, without waiting for the device."""
        up_to_now = self._step.clamp(max=step)
        self._step = torch.where(loss.detach().isfinite(), self._step, up_to_now)

    def read(self) -> int | None:
        """The step over all ranks, which call together; None if every loss was finite."""
        step = int(self._context.all_gather(self._step).min())
        return None if step == _NEVER else step


_NEVER = 2**62


@contextmanager
def explained(run: Path, context: RankContext, lr: float) -> Iterator[None]:
    """Replace a DivergedError by one that tells how to go on. `lr` is the current rate."""
    try:
        yield
    except DivergedError as error:
        after = _way_on(run, error.step, lr) if context.main else ""
        raise KaizenError(f"{error}; {context.exchange(after)[0]}") from None


def _way_on(run: Path, step: tuple[int, int] | None, lr: float) -> str:
    said = "nothing of that is saved"
    ruined = next((path for path in layout.found(run) if layout.position(path) == step), None)
    if ruined is not None:
        with writing(ruined):
            now = layout.set_aside(ruined)
        said = f"{ruined.name}, right before it, is set aside as {now.name}"
    good = layout.found(run)[-1:]
    from_ = f"{good[0]} is the last good checkpoint" if good else "there is no checkpoint before"
    where = "goes on from there" if good else "begins anew"
    # A tenth of an absurd rate is absurd, too.
    lower = lr / 10 if lr <= 100 else 1e-3
    return (
        f"{said}; {from_}, and `kaizen-dist resume {shlex.quote(str(run))} optim.lr={lower:g} "
        f"--allow` {where}: a lower optim.lr (now {lr:g}) mostly cures it, and so can a longer "
        "optim.warmup_epochs"
    )
