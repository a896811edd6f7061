"""What is set for a GPU's arithmetic; what comes of it there is marked `gpu`."""

import os

import pytest
import torch
from spread import SGD, begin, build
from test_worlds import config_of, loader_of

from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.base import digest
from kaizen_dist.engine.options import set_determinism

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """All of it is the process's; other tests want it as it was."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    filling = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filling
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)


@pytest.mark.parametrize("tf32", [True, False])
def test_fp32_is_one_thing_in_convolutions_and_products(tf32):
    set_determinism(ParallelConfig(tf32=tf32), CUDA)
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_repeat_where_that_is_asked_for(deterministic):
    set_determinism(ParallelConfig(deterministic=deterministic), CUDA)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.cudnn_sdp_enabled() is not deterministic
    assert torch.backends.cuda.mem_efficient_sdp_enabled() is not deterministic
    asked = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    assert asked == (":4096:8" if deterministic else None)


def test_a_cpu_is_left_as_it_is():
    before = torch.backends.cuda.matmul.allow_tf32
    set_determinism(ParallelConfig(tf32=not before), torch.device("cpu"))
    assert torch.backends.cuda.matmul.allow_tf32 is before
    assert not torch.are_deterministic_algorithms_enabled()


def after_some_steps(digits, **parallel) -> str:
    model = {"backbone": "resnet18"}
    config = config_of("byol", optim=SGD, model=model, parallel=parallel, views={"size": 32})
    engine = build(config, digits, RankContext(device=CUDA))
    begin(engine, digits, 1)
    batch = loader_of(config, digits, 1, 0, 1).batch(0, 0)
    for step in range(4):
        engine.step(batch, step)
    return digest(engine.full_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_computes_the_same_bits_again(digits, precision):
    assert len({after_some_steps(digits, precision=precision) for _ in range(3)}) == 1
