"""NCCL or gloo: the same choice on every rank, from what all of them have."""

import pytest
import torch

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed import collectives, context
from kaizen_dist.distributed.context import start


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
    assert collectives.choose(gpus) == chosen


def started_with(gpus: list[str], asked: list[str]):
    """A rank that believes to have a GPU; the group that it would join."""

    def joined(store, seat, device, backend, seconds):
        asked.append(backend)
        return real(store, seat, torch.device("cpu"), "gloo", seconds)

    real, context._joined = context._joined, joined
    collectives._uuid = lambda device: gpus.pop(0)
    return ParallelConfig()


def chosen(gpus: list[str]):
    import os

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
