"""The global batch for a loss: gathering over ranks, and the positions of a rank's own rows.

THE RULE every loss keeps: the mean over ranks of what the ranks return is the loss of the
global batch, and so the mean of their gradients (which data parallelism takes) is its gradient.
- A mean over samples stays a mean over the own samples.
- A contrastive loss takes the own rows against the gathered columns.
- A loss on batch statistics gathers, and every rank computes the whole.
"""

from typing import Final, Protocol

import torch
from torch import Tensor


class Gather(Protocol):
    """Brings the ranks' parts of the global batch together."""

    @property
    def rank(self) -> int:
        """Number of this part, from 0."""

    @property
    def world_size(self) -> int:
        """Number of parts."""

    def all_gather(self, local: Tensor) -> Tensor:
        """This rank's [n, ...] to the global [world_size n, ...] in rank order.

        Differentiable: its backward sums the gradients of all ranks and returns the own part.
        Every rank has the same number of rows.
        """


class LocalGather:
    """The gather of one process alone: the global batch is the own."""

    rank = 0
    world_size = 1

    def all_gather(self, local: Tensor) -> Tensor:
        return local


ALONE: Final = LocalGather()


def gather_together(gather: Gather, *parts: Tensor) -> tuple[Tensor, ...]:
    """`gather` of several [n, d] (of one type; each d its own) in one collective.

    Where some need a gradient and others do not they go one by one, for the backward pass
    would sum gradients for all of them.
    """
    if gather.world_size == 1:
        return parts
    if len({part.requires_grad for part in parts}) > 1:
        return tuple(gather.all_gather(part) for part in parts)
    whole = gather.all_gather(torch.cat(parts, dim=1))
    return whole.split([part.shape[1] for part in parts], dim=1)


def own_rows(gather: Gather, local: Tensor) -> Tensor:
    """Positions of the rows of `local` in `gather.all_gather(local)`: int64 of shape [n]."""
    first = gather.rank * len(local)
    return torch.arange(first, first + len(local), device=local.device)
