"""The terms of the loss: the only list of them, for training, events.jsonl and the report.

A new term is a field and a title here, and a value in `Learner.forward`. Torch is not imported, as
reports of finished runs do not need it.
"""

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Losses(NamedTuple):
    """Scalars of one step: the total, and the weighted terms that add up to it (0 = off).

    The mean over ranks of each is its value on the global batch.
    """

    total: "Tensor"
    ssl: "Tensor"
    """w_FE L_FE^CT"""
    classifier: "Tensor"
    """w_C L_C^CT"""
    kd_features: "Tensor"
    """lambda_FE L_FE^KD"""
    kd_classifier: "Tensor"
    """lambda_C L_C^KD"""
    supervised: "Tensor"
    """The labels' loss through the supervised branch (learner/supervision.py)."""
    kd_supervised: "Tensor"
    """Its distillation."""

    @classmethod
    def of(cls, *terms: "Tensor") -> "Losses":
        """All weighted terms in the order of the fields, with their sum."""
        return cls(reduce(add, terms), *terms)

    @classmethod
    def names(cls) -> list[str]:
        """The fields, in the order of `stack`."""
        return list(cls._fields)

    def stack(self) -> "Tensor":
        """All as one tensor [7] without a graph, to be averaged over ranks in one go."""
        import torch

        return torch.stack([loss.detach() for loss in self])


TITLES: Final = {
    "ssl": ("Learn the features", "self-supervised loss"),
    "classifier": ("Learn the labels", "cross-entropy of the classifier"),
    "kd_features": ("Keep the features", "distilled from the frozen copy"),
    "kd_classifier": ("Keep the classifier", "soft labels of the frozen copy"),
    "supervised": ("Labels teach the features", "loss of the supervised branch"),
    "kd_supervised": ("Keep the supervised branch", "distilled from the frozen copy"),
}
"""Of each term in a report: its title and what it is."""
TERMS: Final = tuple(TITLES)
"""Names of the terms: those of the method's equation in its order, then those beyond it."""
BEYOND: Final = ("supervised", "kd_supervised")
"""Those that rows of older versions do not have."""
