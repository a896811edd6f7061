"""Heads warm up before the backbone moves: under every engine, at every world size, over a resume.

Layer-wise learning rates beside it.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from spread import ADAMW, LARS, OTHERS, SGD, begin, build, on_ranks, state_of, train
from test_worlds import config_of, loader_of

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.stream.manifest import Stream

pytestmark = pytest.mark.timeout(900)

WARM, STEPS = 2, 4
BACKBONES = ("backbone.", "momentum.backbone.")


def config_for(stream: Stream, optim: dict, engine: str, **more):
    def made(epochs: float):
        warm = optim | {"warmup_heads": epochs, "layer_decay": 0.5}
        parallel = ({"ddp": {}} | OTHERS)[engine]
        model = {"backbone": "tiny_backbone:Tiny", "init": "given"}
        return config_of("byol", optim=warm, model=model, parallel=parallel, **more)

    per_epoch = loader_of(made(0), stream, 0, 0, 1).order.steps_per_epoch
    return made(WARM / per_epoch)


def moved(before, after) -> set[str]:
    return {n for n, t in after.items() if not np.array_equal(t, before[n])}


def warmed(context: RankContext, root: str, folder: str, optim: dict, engines: list[str]):
    """By engine: what moved in the warm-up and after it, losses and state, and how far a run is
    from there that was saved in the warm-up and went on."""
    stream, found = Stream.open(root), {}
    for name in engines:
        config = config_for(stream, optim, name)
        engine = build(config, stream, context)
        begin(engine, stream, 0)
        states = [state_of(engine)]
        losses = train(engine, stream, 0, range(1))
        kept = Path(folder) / name
        kept.mkdir(exist_ok=True)
        context.barrier()
        engine.snapshot(True).write(kept)
        context.barrier()
        losses += train(engine, stream, 0, range(1, WARM))
        states.append(state_of(engine))
        losses += train(engine, stream, 0, range(WARM, STEPS))
        states.append(state_of(engine))
        again = build(config, stream, context)
        begin(again, stream, 0)
        again.restore(kept, True)
        train(again, stream, 0, range(1, STEPS))
        resumed = moved(states[-1], state_of(again))
        found[name] = moved(*states[:2]), moved(*states[1:]), losses, states[-1], resumed
    return found


def check(found, expected=None):
    """That nothing of the backbone moved too early, and all of it later; against other losses."""
    for name, (early, late, losses, state, resumed) in found.items():
        assert [n for n in early if n.startswith(BACKBONES)] == [], name
        assert {n.split(".")[0] for n in early} >= {"method", "classifier"}, name
        still = {n for n in state if n.startswith(BACKBONES)} - late
        assert still == set(), name
        assert resumed == set(), name
        # Another world sums in another order, which AdamW brings to the size of its steps.
        for theirs, bound in [(found["ddp"], 1e-4), (expected or found["ddp"], 1e-3)]:
            for a, b in zip(losses, theirs[2], strict=True):
                for term, value in b.items():
                    assert a[term] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, term)
            apart = max(float(np.abs(state[n] - t).max()) for n, t in theirs[3].items())
            assert apart < bound, name


@pytest.mark.parametrize(
    ("optim", "engines"),
    [
        pytest.param(
            ADAMW | {"weight_decay": 0.1},
            ["ddp", *OTHERS],
            marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
        ),
        (SGD | {"momentum": 0.9, "clip_norm": 0.5}, ["ddp", "fsdp"]),
        (LARS, ["ddp", "fsdp"]),
    ],
)
def test_the_backbone_stays_and_then_moves(ranks, digits, tmp_path, optim, engines):
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = warmed(RankContext(), str(digits.root), str(alone), optim, ["ddp"])
    check(expected)
    for found in ranks(on_ranks, 2, warmed, str(digits.root), str(tmp_path), optim, engines):
        check(found, expected["ddp"])


def test_the_first_step_of_the_backbone_is_that_of_a_new_optimizer(digits):
    """Nothing has built up: AdamW's first step is as long as its learning rate."""
    optim = ADAMW | {"weight_decay": 0.0, "interval": "step"}
    config = config_for(digits, optim, "ddp")
    engine = build(config, digits, RankContext())
    begin(engine, digits, 0)
    train(engine, digits, 0, range(WARM))
    before = engine.learner.backbone.network[0].weight.detach().clone()
    train(engine, digits, 0, range(WARM, WARM + 1))
    apart = (engine.learner.backbone.network[0].weight.detach() - before).abs().max()
    rates = {g["role"]: g["lr"] for g in engine.optimizer.param_groups if g["params"]}
    lowest = min(g["lr"] for g in engine.optimizer.param_groups if g["role"] == "backbone")
    assert lowest == pytest.approx(rates["model"] * 0.5**2)
    assert float(apart) == pytest.approx(lowest, rel=1e-2)


def test_later_tasks_have_no_warm_up(digits):
    config = config_for(digits, SGD, "ddp")
    engine = build(config, digits, RankContext())
    begin(engine, digits, 1)
    before = state_of(engine)
    train(engine, digits, 1, range(1))
    assert {n for n in before if n.startswith("backbone.")} <= moved(before, state_of(engine))


def test_the_next_tasks_teacher_is_no_other_for_a_warm_up(digits):
    """Though its task ended within the warm-up."""
    config = config_for(digits, SGD, "ddp", teacher={"batch_stats": True})
    engine = build(config, digits, RankContext())
    begin(engine, digits, 0)
    train(engine, digits, 0, range(1))
    begin(engine, digits, 1)
    assert not engine.learner.teacher.backbone.frozen
    assert engine.learner.teacher.backbone.training
