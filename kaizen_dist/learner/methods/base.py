"""The interface of a self-supervised method.

A method owns a projector, turns the projections of two views into a loss, and turns that loss
into distillation. Projections come in, scalars go out; backbone, momentum network, teacher and
distillation predictor belong to the learner.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from kaizen_dist.config.base import Section
from kaizen_dist.learner.gather import Gather
from kaizen_dist.learner.momentum import cosine_tau

Pair: TypeAlias = tuple[Tensor, Tensor]
"""One [n, d] for each of the two views."""


class Method(nn.Module, ABC):
    """Base of all methods; constructed as `Method(features, settings)`.

    `features` is the width of the backbone's output, `settings` an instance of the class's
    `Settings`. All losses keep THE RULE of `learner.gather`.
    """

    name: ClassVar[str]
    """Name of the method in a configuration: that of its file."""
    Settings: ClassVar[type[Section]]
    """The method's settings (key `ssl` of a configuration), published values by default."""
    momentum: ClassVar[bool] = False
    """Whether the method wants keys from a momentum network."""
    distill_weight: ClassVar[float] = 1.0
    """The published lambda_FE, for `distill.features_weight: null`."""

    projector: nn.Module
    """From features [n, f] to projections [n, `distill_dim`]."""
    distill_dim: int
    """Width of a projection."""
    tau_range: tuple[float, float] = (1.0, 1.0)
    """Share of its own weights the momentum network keeps, at a task's first and last step."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]

    @abstractmethod
    def loss(self, z1: Tensor, z2: Tensor, keys: Pair | None, gather: Gather) -> Tensor:
        """L_FE^CT of both views' projections [n, d].

        `keys` are the momentum network's projections of the same views, or None without one.
        """

    @abstractmethod
    def distill(self, p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, gather: Gather) -> Tensor:
        """L_FE^KD, unweighted: predictions [n, d] against the teacher's projections [n, d].

        The mean over the two views.
        """

    def remember(self, keys: Pair, gather: Gather) -> None:
        """Store a training step's keys [n, d] after its loss, e.g. in a queue."""

    def tau(self, progress: float) -> float:
        """Share of its own weights the momentum network keeps at `progress` in [0, 1] of a task."""
        return cosine_tau(*self.tau_range, progress)
