"""Heads on top of the backbone: projectors, predictors and classifiers are all small MLPs."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kaizen_dist.learner.precision import full_precision


def mlp(*widths: int, batch_norm: bool, bias: bool = True, last_bias: bool = True) -> nn.Sequential:
    """Linear layers of the given widths, all but the last followed by [BatchNorm and] ReLU.

    `bias` is that of the hidden layers. Maps [..., widths[0]] to [..., widths[-1]] ([n, ...]
    only with `batch_norm`).
    """
    *hidden, last = pairwise(widths)
    layers: list[nn.Module] = []
    for width_in, width_out in hidden:
        layers.append(nn.Linear(width_in, width_out, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(*last, bias=last_bias))


def mlp_to_norm(*widths: int) -> nn.Sequential:
    """`mlp` with BatchNorm, and another one at its end that has no weights of its own.

    Each BatchNorm would take a bias away again, so that there is none.
    """
    head = mlp(*widths, batch_norm=True, bias=False, last_bias=False)
    return nn.Sequential(head, nn.BatchNorm1d(widths[-1], affine=False))


class UnitLinear(nn.Linear):
    """A linear layer on rows of [n, d] scaled to L2 norm 1."""

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), self.weight, self.bias)


class Normalize(nn.Module):
    """Scales every row of [n, d] to L2 norm 1."""

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
