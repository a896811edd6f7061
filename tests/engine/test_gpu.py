"""A step on a GPU is the step on the CPU, in float64."""

import numpy as np
import pytest
import torch
from test_worlds import config_of, loader_of

from kaizen_dist.engine.ddp import DDPEngine
from kaizen_dist.engine.process import Process
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.methods import method_names

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def learn(method: str, stream, device: torch.device, **parallel):
    config = config_of(method, parallel=parallel)
    process = Process(device=device)
    engine = DDPEngine(
        config, lambda: Learner(config, stream.num_classes, process).double(), process
    )
    losses = []
    for task in (0, 1):
        loader = loader_of(config, stream, task, 0, 1)
        engine.begin_task(task, loader.order.steps_per_epoch, 100)
        losses += [engine.report(engine.step(loader.batch(0, step), step)) for step in range(3)]
    return losses, {name: t.cpu().numpy() for name, t in engine.learner.state_dict().items()}


@pytest.mark.parametrize("method", method_names())
def test_losses_and_weights_are_those_of_the_cpu(digits, method):
    losses, state = learn(method, digits, torch.device("cpu"))
    on_gpu, gpu_state = learn(method, digits, torch.device("cuda", 0))
    for ours, theirs in zip(on_gpu, losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-8)
    for name, tensor in state.items():
        assert np.abs(gpu_state[name] - tensor).max() < 1e-6, name


@pytest.mark.parametrize("method", ["byol", "mocov2plus"])
def test_replayed_networks_compute_the_same(digits, method):
    device = torch.device("cuda", 0)
    losses, state = learn(method, digits, device, compile=True)
    replayed, replayed_state = learn(method, digits, device, compile=True, cuda_graphs=True)
    for ours, theirs in zip(replayed, losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-8)
    for name, tensor in state.items():
        assert np.abs(replayed_state[name] - tensor).max() < 1e-6, name


def test_a_teacher_beside_the_student_teaches_the_same(digits):
    device = torch.device("cuda", 0)
    losses, _ = learn("byol", digits, device)
    beside, _ = learn("byol", digits, device, side_stream=True)
    for ours, theirs in zip(beside, losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-8)
