"""A step on a GPU is the step on the CPU, in float64."""

import numpy as np
import pytest
import torch
from spread import SGD, on_ranks, two_tasks
from test_worlds import config_of, loader_of

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.torch_engine import DDPEngine
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.methods import method_names
from kaizen_dist.stream.manifest import Stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def learn(method: str, stream, device: torch.device, **parallel):
    config = config_of(method, parallel=parallel)
    context = RankContext(device=device)
    engine = DDPEngine(
        config, lambda: Learner(config, stream.num_classes, context).double(), context
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


def learnt_on_ranks(root: str, method: str):
    """Losses, and of every tensor of the state its sum and that of its absolute values."""
    config, stream = config_of(method, optim=SGD), Stream.open(root)
    run = on_ranks(lambda context: two_tasks(config, stream, context, (2, 2), double=True))
    return run.losses, {n: (float(t.sum()), float(abs(t).sum())) for n, t in run.state.items()}


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="there is not exactly one CUDA device")
@pytest.mark.parametrize("method", ["byol", "mocov2plus", "vicreg"])
def test_two_ranks_on_one_gpu_learn_what_one_learns(ranks, digits, method):
    ((losses, state),) = ranks(learnt_on_ranks, 1, str(digits.root), method)
    for theirs, their_state in ranks(learnt_on_ranks, 2, str(digits.root), method):
        for a, b in zip(theirs, losses, strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-9)
        for name, sums in state.items():
            assert their_state[name] == pytest.approx(sums, rel=1e-7, abs=1e-7), name
