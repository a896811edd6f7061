"""What the tests of the engines run on every rank: a few steps of two tasks, and what to compare.

Results are compared on the ranks themselves; only differences travel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from test_worlds import config_of, loader_of

from kaizen_dist.config import Config
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import Engine
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
    with start(here(), threads=1) as context:
        return function(context, *arguments)


def build(config: Config, stream: Stream, context: RankContext, double: bool = False) -> Engine:
    def make() -> Learner:
        learner = Learner(config, stream.num_classes, context)
        return learner.double() if double else learner

    engine = engine_class(config.parallel.engine)
    engine.check(config, context.world_size)
    return engine(config, make, context)


def train(engine: Engine, stream: Stream, task: int, steps: range) -> list[dict[str, float]]:
    """The losses of some steps of a task that has begun."""
    context = engine.context
    loader = loader_of(engine.config, stream, task, context.rank, context.world_size)
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
    context, learner = engine.context, engine.learner
    batch = loader_of(engine.config, stream, task, context.rank, context.world_size).batch(0, 0)
    learner.eval()
    with torch.no_grad():
        views = batch.to(context.device, next(learner.parameters()).dtype).views[0]
        features = learner.embed(views)
        return features.cpu(), learner.classifier(features).cpu()


@dataclass
class Run:
    """What is worth comparing of a short run."""

    losses: list[dict[str, float]]
    state: dict[str, np.ndarray]
    answers: list[np.ndarray]
    """Features and logits of a batch."""
    teacher: float
    """How far the teacher ever is from the student at the end of the task before."""
    momentum: float
    """How far the momentum network is after a step from tau own + (1 - tau) student."""


def two_tasks(
    config: Config,
    stream: Stream,
    context: RankContext,
    steps: tuple[int, int],
    double: bool = False,
) -> Run:
    """Some steps of task 0, and then of task 1, which has a teacher and replay."""
    engine = build(config, stream, context, double)
    begin(engine, stream, 0)
    losses = train(engine, stream, 0, range(steps[0]))
    student = state_of(engine)
    begin(engine, stream, 1)
    begun = state_of(engine)
    losses += train(engine, stream, 1, range(1))
    stepped = state_of(engine)
    losses += train(engine, stream, 1, range(1, steps[1]))
    state = state_of(engine)
    return Run(
        losses,
        state,
        [tensor.numpy() for tensor in features_of(engine, stream, 1)],
        max(copied(student, begun), copied(student, state)),
        followed(begun, stepped, engine.learner.method.tau(0.0)),
    )


PARTS = {
    "backbone": "backbone",
    "projector": "method.projector",
    "classifier": "classifier",
    "supervised": "supervised.projector",
}
"""Where the student keeps what teacher and momentum network call so."""


def copied(student, state) -> float:
    names = [name for name in state if name.startswith("teacher.")]
    there = {part for part, place in PARTS.items() if any(n.startswith(place) for n in student)}
    assert {name.split(".")[1] for name in names} == there
    apart = 0.0
    for name in names:
        _, part, rest = name.split(".", 2)
        apart = max(apart, float(np.abs(state[name] - student[f"{PARTS[part]}.{rest}"]).max()))
    return apart


def followed(before, after, tau: float) -> float:
    apart = 0.0
    for name, own in before.items():
        if not name.startswith("momentum.") or "running" in name or "tracked" in name:
            continue
        _, part, rest = name.split(".", 2)
        student = after[f"{PARTS[part]}.{rest}"].astype(np.float64)
        expected = tau * own.astype(np.float64) + (1 - tau) * student
        apart = max(apart, float(np.abs(after[name] - expected).max()))
    return apart


def difference(ours: Run, theirs: Run) -> dict[str, float]:
    """How far two runs are apart: losses and answers relative, state absolute."""
    assert ours.state.keys() == theirs.state.keys()
    return {
        "losses": max(
            abs(a[term] - b[term]) / max(abs(b[term]), 1e-6)
            for a, b in zip(ours.losses, theirs.losses, strict=True)
            for term in b
        ),
        "state": max(float(np.abs(ours.state[n] - t).max()) for n, t in theirs.state.items()),
        "answers": max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(ours.answers, theirs.answers, strict=True)
        ),
        "teacher": ours.teacher,
        "momentum": ours.momentum,
    }


def against_ddp(
    context: RankContext, root: str, method: str, sections: dict, engines: dict, steps, double=False
):
    """({name of an engine: how far its run is from that of DDP}, DDP's losses)."""
    stream = Stream.open(root)

    def run(parallel: dict) -> Run:
        config = config_of(method, **sections | {"parallel": parallel})
        return two_tasks(config, stream, context, steps, double)

    expected = run({})
    return {
        name: difference(run(parallel), expected) for name, parallel in engines.items()
    }, expected.losses
