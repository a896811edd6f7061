"""The collectives, against what one process computes on the whole, and their backend."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed import context as module
from kaizen_dist.distributed.context import RankContext, choose_backend, device_of, start
from kaizen_dist.engine.batchnorm import synchronise

ROWS = 12


def whole(dims: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (ROWS, 5) if dims == 2 else (ROWS, 5, 3, 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 7


def gathered():
    with start(ParallelConfig(), threads=1) as context:
        n = ROWS // context.world_size
        own = whole(2)[context.rank * n : (context.rank + 1) * n].requires_grad_()
        every = context.all_gather(own)
        # Every rank weighs the whole in its own way: the backward must sum these.
        weight = torch.arange(every.numel(), dtype=torch.float64).view_as(every) + context.rank
        (every * every * weight).sum().backward()
        return every.detach().numpy(), own.grad.numpy(), context.mean(own).numpy()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_gather_brings_all_rows_and_its_backward_sums_all_gradients(ranks, world):
    answers = ranks(gathered, world)
    expected = whole(2).numpy()
    weights = sum(np.arange(expected.size).reshape(expected.shape) + r for r in range(world))
    gradient = np.concatenate([grad for _, grad, _ in answers])
    mean = expected.reshape(world, -1, 5).mean(axis=0)
    for every, _, averaged in answers:
        assert np.array_equal(every, expected)
        assert np.allclose(averaged, mean, rtol=1e-12)
    assert np.allclose(gradient, 2 * expected * weights, rtol=1e-12)


def normalised(dims: int):
    with start(ParallelConfig(), threads=1) as context:
        norm: nn.Module = nn.BatchNorm1d(5) if dims == 2 else nn.BatchNorm2d(5)
        module = nn.Sequential(norm).double()
        with torch.no_grad():
            norm.weight.copy_(torch.arange(5) + 0.5)
            norm.bias.copy_(torch.arange(5) - 2.0)
        if context.world_size > 1:
            synchronise(module, context.device)
            assert type(module[0]) is not type(norm)
        n = ROWS // context.world_size
        own = whole(dims)[context.rank * n : (context.rank + 1) * n].requires_grad_()
        out = module(own)
        context.all_gather(out).pow(3).sum().div(context.world_size).backward()
        # The rule: the mean over ranks of the gradients is that of the whole.
        grads = [context.mean(p.grad).numpy() * context.world_size for p in module.parameters()]
        buffers = [b.numpy().copy() for b in module.buffers()]
        module.eval()
        frozen = module(own).detach().numpy()
        return out.detach().numpy(), own.grad.numpy(), grads, buffers, frozen


@pytest.mark.parametrize("dims", [2, 4])
def test_global_batch_norm_is_batch_norm_of_the_whole(ranks, dims):
    ((out, grad, grads, buffers, frozen),) = ranks(normalised, 1, dims)
    for world in (2, 4):
        answers = ranks(normalised, world, dims)
        assert np.allclose(np.concatenate([a[0] for a in answers]), out, rtol=1e-12, atol=1e-12)
        assert np.allclose(np.concatenate([a[1] for a in answers]), grad, rtol=1e-9, atol=1e-9)
        assert np.allclose(np.concatenate([a[4] for a in answers]), frozen, atol=1e-12)
        for answer in answers:
            for ours, theirs in zip(answer[2], grads, strict=True):
                assert np.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(answer[3], buffers, strict=True):
                assert np.allclose(ours, theirs, rtol=1e-12)


def waited_for(place: str):
    """A barrier where, as with NCCL, a collective returns before it is done."""
    with start(ParallelConfig(), threads=1) as context:
        reduce = dist.all_reduce

        def queued(tensor, *arguments, group=None, **more):
            if group is None:
                return reduce(tensor, *arguments, group=group, async_op=True)
            return reduce(tensor, *arguments, group=group, **more)

        dist.all_reduce = queued
        written = Path(place)
        if context.main:
            time.sleep(1)
            written.write_text("done")
        context.barrier()
        dist.all_reduce = reduce
        return written.exists()


def test_the_host_waits_at_a_barrier_also_where_collectives_are_queued(ranks, tmp_path):
    assert ranks(waited_for, 2, str(tmp_path / "written")) == [True, True]


def groups_wait():
    with start(ParallelConfig(timeout_seconds=123), threads=1) as context:
        groups = (context.background, context.control)
        return [g._get_backend(torch.device("cpu")).options._timeout for g in groups]


def test_the_limit_of_a_collective_is_that_of_every_group(ranks):
    for limits in ranks(groups_wait, 2):
        assert [limit.total_seconds() for limit in limits] == [123, 123]


def test_alone_every_collective_is_the_identity():
    context = RankContext()
    rows = torch.randn(3, 2, requires_grad=True)
    assert context.all_gather(rows) is rows
    assert context.main
    assert torch.equal(context.mean(rows), rows)
    context.barrier()


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with (
        pytest.raises(UsageError, match=r"WORLD_SIZE.*--procs"),
        start(ParallelConfig(), threads=1),
    ):
        pass


@pytest.mark.parametrize(("gpus", "taken"), [(4, 2), (1, 0)])
def test_a_rank_takes_its_gpu_of_all_or_the_only_one_it_is_shown(monkeypatch, gpus, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_of(2) == torch.device("cuda", taken)


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"rank 2 of this node has no GPU.* 2 are visible"):
        device_of(2)


@pytest.mark.parametrize("keep", [True, False])
def test_memory_is_kept_where_it_is_asked_for(monkeypatch, keep):
    monkeypatch.delenv("RANK", raising=False)
    kept = []
    monkeypatch.setattr(
        "kaizen_dist.distributed.context.keep_freed_memory", lambda: kept.append(True)
    )
    with start(ParallelConfig(keep_memory=keep), threads=torch.get_num_threads()):
        pass
    assert kept == [True] * keep


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        (["", ""], "gloo"),
        (["a", "b"], "nccl"),
        (["a", "a"], "gloo"),
        (["a", "b", "a"], "gloo"),
        (["a"], "nccl"),
    ],
)
def test_ranks_that_share_a_gpu_talk_over_gloo(gpus, chosen):
    assert choose_backend(gpus) == chosen


def started_with(gpus: list[str], asked: list[str]):
    """A rank that believes to have a GPU; the group that it would join."""

    def joined(store, info, device, backend, seconds):
        asked.append(backend)
        return real(store, info, torch.device("cpu"), "gloo", seconds)

    real, module._joined = module._joined, joined
    module._gpu_uuid = lambda device: gpus.pop(0)
    return ParallelConfig()


def chosen(gpus: list[str]):
    asked: list[str] = []
    config = started_with([gpus[int(os.environ["RANK"])]], asked)
    try:
        with start(config, threads=1):
            pass
    except UsageError as error:
        return str(error)
    return asked[0]


def test_all_ranks_choose_the_same(ranks):
    assert ranks(chosen, 3, ["a", "b", "c"]) == ["nccl"] * 3
    assert ranks(chosen, 3, ["a", "b", "b"]) == ["gloo"] * 3


def test_a_rank_that_sees_no_gpu_is_named_on_all_ranks(ranks):
    for said in ranks(chosen, 3, ["a", "", "c"]):
        assert "no GPU is seen by rank 1 of 3" in said
        assert "--gpus-per-task" in said


def two_on_one():
    with start(ParallelConfig(), threads=1) as here:
        total = here.sum(torch.full((2,), here.rank + 1.0, device=here.device))
        return here.device.type, total.cpu().tolist()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="there is not exactly one CUDA device")
def test_two_ranks_work_on_one_gpu(ranks):
    assert ranks(two_on_one, 2) == [("cuda", [3.0, 3.0])] * 2
