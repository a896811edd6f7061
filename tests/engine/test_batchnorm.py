"""BatchNorm over several ranks, against torch's own on the whole batch."""

import pytest
import torch
from torch import nn

from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import start
from kaizen_dist.engine.batchnorm import GlobalBatchNorm, synchronise

SHAPES = [(8, 5), (8, 5, 4, 3)]


def whole_batch(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    # Far from zero: a variance from sums of squares would lose its digits here.
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1 + 100
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def norm_of(shape: tuple[int, ...], affine: bool) -> nn.Module:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    norm = kind(shape[1], affine=affine).double()
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    return norm


def through(norm: nn.Module, x: torch.Tensor, dy: torch.Tensor):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    return y.detach(), x.grad, [p.grad for p in norm.parameters()], dict(norm.named_buffers())


def one_rank():
    """What each rank gets for its part, for every case."""
    answers = []
    with start(ParallelConfig(), threads=1) as process:
        for shape in SHAPES:
            for affine in (True, False):
                norm = synchronise(nn.Sequential(norm_of(shape, affine)), process.device)[0]
                assert isinstance(norm, GlobalBatchNorm)
                x, dy = (t.chunk(process.world_size)[process.rank] for t in whole_batch(shape))
                y, dx, dp, buffers = through(norm, x, dy)
                dp = [process.sum(g).tolist() for g in dp]
                kept = {name: b.tolist() for name, b in buffers.items()}
                answers.append((y.tolist(), dx.tolist(), dp, kept))
    return answers


@pytest.mark.parametrize("world", [2, 4])
def test_output_gradients_and_statistics_are_those_of_the_whole_batch(ranks, world):
    found = ranks(one_rank, world)
    cases = [(shape, affine) for shape in SHAPES for affine in (True, False)]
    for case, (shape, affine) in enumerate(cases):
        x, dy = whole_batch(shape)
        y, dx, dp, buffers = through(norm_of(shape, affine), x, dy)
        for part, column in ((y, 0), (dx, 1)):
            joined = torch.tensor(
                [row for rank in found for row in rank[case][column]], dtype=torch.float64
            )
            torch.testing.assert_close(joined, part, rtol=1e-11, atol=1e-9)
        for rank in found:
            for ours, theirs in zip(rank[case][2], dp, strict=True):
                torch.testing.assert_close(
                    torch.tensor(ours, dtype=theirs.dtype), theirs, rtol=1e-11, atol=1e-9
                )
            for name, theirs in buffers.items():
                ours = torch.tensor(rank[case][3][name], dtype=theirs.dtype)
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-9)
