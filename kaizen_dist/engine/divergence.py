"""A training that has left the finite numbers: nothing of it is kept, and what to do is said.

A loss that is not finite is noted on the device at every step (`Engine.step`), read where a row is
logged or a state is to be saved, and ends the run on all ranks alike. A step whose loss is finite
may still leave a model that is not: every copy is looked through before it becomes a checkpoint.
And a checkpoint right before a step whose loss is not finite cannot be gone on from at any rate: it
is set aside, so that the one before it is the newest.
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
    """Whether all numbers are finite; of tensors cut over the ranks, this rank's."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return all(bool(t.isfinite().all()) for t in local if t.is_floating_point())


class FirstBad:
    """The first step of a task whose loss was not finite, kept where the losses are."""

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._step = torch.full((1,), _NEVER, device=context.device)

    def note(self, step: int, loss: Tensor) -> None:
        """Look at this rank's loss of a step, without waiting for the device."""
        up_to_now = self._step.clamp(max=step)
        self._step = torch.where(loss.detach().isfinite(), self._step, up_to_now)

    def read(self) -> int | None:
        """Of all ranks, which ask together; None where every loss was finite."""
        step = int(self._context.all_gather(self._step).min())
        return None if step == _NEVER else step


_NEVER = 2**62


@contextmanager
def explained(run: Path, context: RankContext, lr: float) -> Iterator[None]:
    """In place of a DivergedError comes one that says how to go on. `lr` is the rate in force."""
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
    # A tenth of what is out of all measure is so, too.
    lower = lr / 10 if lr <= 100 else 1e-3
    return (
        f"{said}; {from_}, and `kaizen-dist resume {shlex.quote(str(run))} optim.lr={lower:g} "
        f"--allow` {where}: a lower optim.lr (now {lr:g}) mostly cures it, and so can a longer "
        "optim.warmup_epochs"
    )
