"""What the tests of the engines run on every rank: a few steps of two tasks, and what to compare.

Results are compared on the ranks themselves; only differences travel.
"""

import numpy as np
import torch
from test_worlds import config_of, loader_of

from kaizen_dist.config import Config
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import Engine
from kaizen_dist.engine.process import Process, start
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream

ADAMW = {"name": "adamw", "lr": 1e-3, "warmup_epochs": 0}
SGD = {"name": "sgd", "lr": 0.05, "warmup_epochs": 0}
LARS = {"name": "lars", "lr": 0.5, "warmup_epochs": 0}
TOTAL = 100
"""Steps that a task is said to have."""

OTHERS = {
    "fsdp": {"engine": "fsdp"},
    **{f"zero{n}": {"engine": "deepspeed", "zero_stage": n} for n in range(4)},
}
"""Every engine but DDP, with which they are compared."""


def here() -> ParallelConfig:
    return ParallelConfig(timeout_seconds=120)


def on_ranks(function, *arguments):
    """Call `function(process, ...)` in the world that the environment describes."""
    with start(here(), threads=1) as process:
        return function(process, *arguments)


def build(config: Config, stream: Stream, process: Process, double: bool = False) -> Engine:
    def make() -> Learner:
        learner = Learner(config, stream.num_classes, process)
        return learner.double() if double else learner

    engine = engine_class(config.parallel.engine)
    engine.check(config, process.world_size)
    return engine(config, make, process)


def train(engine: Engine, stream: Stream, task: int, steps: range) -> list[dict[str, float]]:
    """The losses of some steps of a task that has begun."""
    process = engine.process
    loader = loader_of(engine.config, stream, task, process.rank, process.world_size)
    per_epoch = loader.order.steps_per_epoch
    return [
        engine.report(engine.step(loader.batch(*divmod(step, per_epoch)), step)) for step in steps
    ]


def begin(engine: Engine, stream: Stream, task: int) -> None:
    loader = loader_of(engine.config, stream, task, 0, 1)
    engine.begin_task(task, loader.order.steps_per_epoch, TOTAL)


def state_of(engine: Engine) -> dict[str, np.ndarray]:
    return {name: tensor.clone().numpy() for name, tensor in engine.full_state()}


def features_of(engine: Engine, stream: Stream, task: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits of a batch, as evaluation asks for them."""
    process, learner = engine.process, engine.learner
    batch = loader_of(engine.config, stream, task, process.rank, process.world_size).batch(0, 0)
    learner.eval()
    with torch.no_grad():
        features = learner.embed(batch.views[0].to(next(learner.parameters()).dtype))
        return features, learner.classifier(features)


def two_tasks(
    config: Config, stream: Stream, process: Process, steps: tuple[int, int], double: bool = False
):
    """(losses of both tasks, the whole state, features and logits) after a short run."""
    engine = build(config, stream, process, double)
    losses = []
    for task, count in enumerate(steps):
        begin(engine, stream, task)
        losses += train(engine, stream, task, range(count))
    seen = [tensor.numpy() for tensor in features_of(engine, stream, 1)]
    return losses, state_of(engine), seen


def difference(ours, theirs) -> dict[str, float]:
    """How far two results of `two_tasks` are apart: losses and answers relative, state absolute."""
    assert ours[1].keys() == theirs[1].keys()
    return {
        "losses": max(
            abs(a[term] - b[term]) / max(abs(b[term]), 1e-6)
            for a, b in zip(ours[0], theirs[0], strict=True)
            for term in b
        ),
        "state": max(float(np.abs(ours[1][n] - t).max(initial=0)) for n, t in theirs[1].items()),
        "answers": max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(ours[2], theirs[2], strict=True)
        ),
    }


def against_ddp(root: str, method: str, sections: dict, engines: dict, steps, double: bool = False):
    """{name of an engine: how far its run is from that of DDP}, and DDP's losses."""
    stream = Stream.open(root)

    def compare(process: Process):
        expected = two_tasks(config_of(method, **sections), stream, process, steps, double)
        parallel = sections.get("parallel", {})
        found = {
            name: two_tasks(
                config_of(method, **sections | {"parallel": parallel | own}),
                stream,
                process,
                steps,
                double,
            )
            for name, own in engines.items()
        }
        return {name: difference(run, expected) for name, run in found.items()}, expected[0]

    return on_ranks(compare)
