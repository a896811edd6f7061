"""Every engine trains the same model: DDP, FSDP2 and ZeRO 0 to 3, on several real processes."""

import numpy as np
import pytest
from spread import ADAMW, OTHERS, SGD, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import config_of

from kaizen_dist.engine import engine_class
from kaizen_dist.engine.process import Process
from kaizen_dist.errors import UsageError
from kaizen_dist.stream.manifest import Stream

pytestmark = pytest.mark.timeout(900)
pytest.importorskip("deepspeed")

CLOSE = {"losses": 1e-5, "answers": 1e-5, "state": 1e-4}
"""The state is compared absolutely, after steps of AdamW of 1e-3 each."""


def assert_close(found, bounds=CLOSE):
    for name, apart in found.items():
        for what, bound in bounds.items():
            assert apart[what] <= bound, (name, apart)


@pytest.mark.parametrize("world", [1, 2])
def test_all_engines_are_ddp(ranks, digits, world):
    answers = ranks(against_ddp, world, str(digits.root), "byol", {"optim": ADAMW}, OTHERS, (2, 4))
    for found, losses in answers:
        assert found.keys() == OTHERS.keys()
        assert all(losses[-1][term] != 0 for term in ("kd_features", "kd_classifier"))
        assert_close(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus", "vicreg"])
def test_all_engines_are_ddp_over_twenty_steps(ranks, digits, method):
    answers = ranks(
        against_ddp, 2, str(digits.root), method, {"optim": ADAMW}, OTHERS, (3, 20), timeout=1800
    )
    for found, _ in answers:
        assert_close(found)


def test_with_micro_batches_clipping_and_recomputation(ranks, digits):
    plain = {"optim": SGD | {"clip_norm": 0.5}, "train": {"batch_size": 16, "accumulate": 2}}
    recomputed = {n: e | {"activation_checkpointing": True} for n, e in OTHERS.items()}
    recomputed["ddp"] = {"engine": "ddp", "activation_checkpointing": True}
    answers = ranks(against_ddp, 2, str(digits.root), "byol", plain, recomputed, (2, 2))
    for found, _ in answers:
        assert_close(found, CLOSE | {"state": 1e-5})


def copies(process: Process, root: str):
    """How far teacher and momentum network of each engine are from what they should be."""
    stream = Stream.open(root)
    found = {}
    for name, parallel in {"ddp": {}, **OTHERS}.items():
        config = config_of("byol", optim=ADAMW, parallel=parallel)
        engine = build(config, stream, process)
        begin(engine, stream, 0)
        train(engine, stream, 0, range(2))
        student = state_of(engine)
        begin(engine, stream, 1)
        begun = state_of(engine)
        train(engine, stream, 1, range(1))
        after = state_of(engine)
        tau = engine.learner.method.tau(0.0)
        found[name] = copied(student, begun, after), followed(begun, after, tau)
    return found


def copied(student, begun, after) -> float:
    """How far the teacher is from the student at the end of the last task."""
    parts = {"backbone": "backbone", "projector": "method.projector", "classifier": "classifier"}
    names = [name for name in after if name.startswith("teacher.")]
    assert {name.split(".")[1] for name in names} == parts.keys()
    apart = 0.0
    for name in names:
        _, part, rest = name.split(".", 2)
        expected = student[f"{parts[part]}.{rest}"]
        for state in (begun, after):
            apart = max(apart, float(np.abs(state[name] - expected).max()))
    return apart


def followed(before, after, tau: float) -> float:
    """How far each parameter of the momentum network is from tau own + (1 - tau) student."""
    parts = {"backbone": "backbone", "projector": "method.projector"}
    apart, moved = 0.0, 0.0
    for name, own in before.items():
        if not name.startswith("momentum.") or "running" in name or "tracked" in name:
            continue
        _, part, rest = name.split(".", 2)
        student = after[f"{parts[part]}.{rest}"].astype(np.float64)
        expected = tau * own.astype(np.float64) + (1 - tau) * student
        apart = max(apart, float(np.abs(after[name] - expected).max()))
        moved = max(moved, float(np.abs(after[name] - own).max()))
    assert moved > 1e-6
    return apart


def test_teacher_and_momentum_network_are_right(ranks, digits):
    for found in ranks(on_ranks, 2, copies, str(digits.root)):
        assert found.keys() == {"ddp", *OTHERS}
        for name, (teacher, momentum) in found.items():
            assert teacher == 0, name
            assert momentum < 1e-6, name


def test_what_does_not_fit_together_is_refused():
    def check(engine, world=2, **sections):
        config = config_of("byol", **sections)
        engine_class(engine).check(config, world)

    for stage in (1, 2, 3):
        with pytest.raises(UsageError, match=r"optim.name: lars .*parallel.engine=fsdp"):
            check("deepspeed", parallel={"engine": "deepspeed", "zero_stage": stage})
    check("deepspeed", parallel={"engine": "deepspeed", "zero_stage": 0})
    with pytest.raises(UsageError, match="parallel.precision: .*bf16"):
        check("deepspeed", optim=ADAMW, parallel={"engine": "deepspeed", "precision": "fp16"})
    for engine in ("ddp", "fsdp", "deepspeed"):
        sections = {"optim": ADAMW, "train": {"batch_size": 16, "accumulate": 8}}
        with pytest.raises(UsageError, match=r"train.accumulate: 8 lanes .*that fit: 1, 2, 4 "):
            check(engine, **sections)
