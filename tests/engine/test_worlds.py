"""Promise 2: a run means the same at every world size, shown by several real processes.

The losses are compared in float64, with batch statistics over the global batch, on real
images of task 1 of a stream: all four terms, replay and (where a method has them) momentum
network and queue take part.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from kaizen_dist.config import Config, validate
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.engine.base import digest
from kaizen_dist.engine.torch_engine import DDPEngine
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.methods import method_names
from kaizen_dist.learner.terms import TERMS
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay import choose
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import Loader

# Seven processes on what cores there are.
pytestmark = pytest.mark.timeout(900)

STEPS = 3
SMALL = {
    "byol": {"hidden": 24, "dim": 12, "predictor_hidden": 20},
    "simclr": {"hidden": 24, "dim": 12},
    "mocov2plus": {"hidden": 24, "dim": 12, "queue": 50},
    "mocov3": {"hidden": 24, "dim": 12, "predictor_hidden": 20},
    "vicreg": {"hidden": 24, "dim": 12},
    "barlow_twins": {"hidden": 24, "dim": 12},
    "simsiam": {"hidden": 24, "dim": 12, "predictor_hidden": 20},
}


SUPERVISED = [f"simclr, {loss}" for loss in ("cross_entropy", "contrastive")]
"""And a method with a supervised branch."""
ALL = [*method_names(), *SUPERVISED]


def config_of(named: str, **sections) -> Config:
    method, _, loss = named.partition(", ")
    branch = {"weight": 1.0, "loss": loss, "hidden": 20, "dim": 8}
    values = {
        "method": method,
        "supervise": branch if loss else {},
        "ssl": SMALL[method],
        "model": {"backbone": "tiny_backbone:Tiny", "sync_bn": True},
        "classifier": {"hidden": 16},
        "distill": {"hidden": 20},
        "train": {"epochs": 10, "batch_size": 16},
        "replay": {"fraction": 0.05, "batch_size": 8},
        "optim": {"lr": 0.5, "warmup_epochs": 0},
        "views": {"backend": "torch", "size": 8},
    }
    return validate(values | sections, "the test")


def loader_of(config: Config, stream: Stream, task: int, rank: int, world: int) -> Loader:
    splits = {task: stream.split(task, "train")}
    for past in range(task):
        whole = stream.split(past, "train")
        rows = choose(whole, config.replay.fraction, "random", 0, past)
        splits[past] = Split(whole.folder, whole.part, whole.index[rows])
    sizes = tuple(len(splits[t]) for t in range(task))
    train, replay = config.train, config.replay
    order = Order(
        0, task, len(splits[task]), train.batch_size, config.lanes, sizes, replay.batch_size
    )
    return Loader(order, splits, config.views, lanes_of_rank(config.lanes, rank, world))


def learn(root: str, folder: str):
    """With each method two steps of task 0, then STEPS of task 1; what is worth comparing."""
    stream = Stream.open(root)
    with start(ParallelConfig(), threads=1) as context:
        return {m: learn_one(m, stream, context, Path(folder) / m) for m in ALL}


def learn_one(method: str, stream: Stream, context: RankContext, alone: Path):
    """(ids, losses, digest of the state, largest differences from one rank alone).

    One rank alone leaves its gradients and weights in the file `alone`, which the first rank
    of several compares its own with.
    """
    config = config_of(method)
    engine = DDPEngine(
        config, lambda: Learner(config, stream.num_classes, context).double(), context
    )
    seen, losses, gradients = [], [], {}
    for task, steps in ((0, 2), (1, STEPS)):
        loader = loader_of(config, stream, task, context.rank, context.world_size)
        engine.begin_task(task, loader.order.steps_per_epoch, 100)
        for step in range(steps):
            batch = loader.batch(0, step)
            seen.append(context.all_gather(torch.from_numpy(batch.ids)).tolist())
            losses.append(engine.report(engine.step(batch, step)))
            if task == 1 and step == 0:
                gradients = {
                    name: p.grad.clone()
                    for name, p in engine.learner.named_parameters()
                    if p.grad is not None
                }
    state = engine.learner.state_dict()
    if context.world_size == 1:
        torch.save({"gradients": gradients, "state": state}, alone)
    differences = {}
    if context.main:
        expected = torch.load(alone, weights_only=True)
        for kind, tensors in (("gradients", gradients), ("state", state)):
            assert tensors.keys() == expected[kind].keys()
            differences[kind] = max(
                float((tensors[name].double() - tensor.double()).abs().max())
                for name, tensor in expected[kind].items()
            )
    return seen, losses, digest(engine.full_state()), differences


@pytest.fixture(scope="module")
def learnt(ranks, digits, shared_folder):
    """{world size: [what each rank says of each method]}; each world is started once."""
    return {world: ranks(learn, world, str(digits.root), str(shared_folder)) for world in (1, 2, 4)}


@pytest.mark.parametrize("method", ALL)
def test_losses_gradients_and_weights_are_those_of_one_rank(learnt, method):
    seen, losses, _, _ = learnt[1][0][method]
    first = losses[2]
    on = TERMS if method in SUPERVISED else TERMS[:4]
    assert [term for term in TERMS if first[term] != 0] == [*on]
    assert first["loss"] == pytest.approx(sum(first[term] for term in TERMS))
    for ids in seen[2:]:
        assert len(set(ids)) == len(ids) == 24, "no image is replayed twice in a step"
    for world in (2, 4):
        found = [answers[method] for answers in learnt[world]]
        for theirs in found:
            assert theirs[0] == seen, "the same samples in the same order"
            for ours, expected in zip(theirs[1], losses, strict=True):
                for term, value in expected.items():
                    assert ours[term] == pytest.approx(value, rel=1e-9, abs=1e-9), term
        assert len({theirs[2] for theirs in found}) == 1, "all ranks hold the same model"
        assert found[0][3]["gradients"] < 1e-8
        assert found[0][3]["state"] < 1e-7


def unsynchronised(root: str):
    config = config_of("simclr", model={"backbone": "resnet10", "sync_bn": False})
    stream = Stream.open(root)
    with start(ParallelConfig(), threads=1) as context:
        engine = DDPEngine(config, lambda: Learner(config, stream.num_classes, context), context)
        loader = loader_of(config, stream, 0, context.rank, context.world_size)
        engine.begin_task(0, loader.order.steps_per_epoch, 100)
        engine.step(loader.batch(0, 0), 0)
        norm = engine.learner.backbone.network.bn1
        before = norm.running_mean.numpy().copy()
        engine.settle()
        return before, norm.running_mean.numpy().copy()


def test_without_sync_bn_buffers_are_averaged_before_use(ranks, digits):
    (before0, after0), (before1, after1) = ranks(unsynchronised, 2, str(digits.root))
    assert not np.allclose(before0, before1)
    assert np.allclose(after0, (before0 + before1) / 2, atol=1e-7)
    assert np.array_equal(after0, after1)
