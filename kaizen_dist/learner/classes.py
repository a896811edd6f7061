"""The classes of a task: those that are known when it begins, and the labels met in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kaizen_dist.learner.gather import Gather


@dataclass(frozen=True)
class KnownClasses:
    """The classes that a stream has when a task begins."""

    count: int
    """Classes with a number by then, which are the outputs of the classifier."""
    unseen: tuple[int, ...] = ()
    """Numbers among them whose classes no task so far has. There are some in streams of format 1
    only, which numbered all classes before the first task."""
    unseen_before: tuple[int, ...] = ()
    """The same of the task before, for the teacher."""

    def masks(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """bool [count] of both, True at the unseen; None where there are none."""
        return self._mask(self.unseen, device), self._mask(self.unseen_before, device)

    def _mask(self, numbers: tuple[int, ...], device: torch.device) -> Tensor | None:
        if not numbers:
            return None
        mask = torch.zeros(self.count, dtype=torch.bool)
        mask[list(numbers)] = True
        return mask.to(device)


def count_labels(seen: Tensor, labels: Tensor, gather: Gather) -> None:
    """Add the labels int64 [n] of all ranks, -1 = unlabelled, to `seen` int64 [C]."""
    # No shape depends on the data: the host need not wait for it.
    counts = torch.zeros_like(seen)
    counts.index_add_(0, labels.clamp(min=0), (labels >= 0).to(counts.dtype))
    seen += gather.all_gather(counts[None]).sum(0)
