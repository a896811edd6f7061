"""FSDP2: what is cut is cut, LARS is right on it, and its state and DDP's are one."""

from pathlib import Path

import numpy as np
import pytest
from spread import LARS, SGD, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import config_of
from torch.distributed.tensor import DTensor

from kaizen_dist.engine.process import Process
from kaizen_dist.stream.manifest import Stream

pytestmark = pytest.mark.timeout(900)


def test_lars_is_that_of_ddp(ranks, digits):
    sections = {"optim": LARS | {"clip_norm": 1.0}}
    for found, losses in ranks(
        against_ddp,
        2,
        str(digits.root),
        "byol",
        sections,
        {"fsdp": {"engine": "fsdp"}},
        (2, 4),
        True,
    ):
        assert losses[-1]["kd_features"] != 0
        apart = found["fsdp"]
        # In float64: what rounding leaves of one norm summed over two parts.
        assert max(apart.values()) < 1e-9, apart


def parts(process: Process, root: str):
    """The share of all parameters' elements, by part of the learner, that lies on this rank."""
    config = config_of("byol", optim=SGD, parallel={"engine": "fsdp"})
    stream = Stream.open(root)
    engine = build(config, stream, process)
    begin(engine, stream, 1)
    train(engine, stream, 1, range(1))
    own, whole = {}, {}
    for name, parameter in engine.learner.named_parameters():
        assert isinstance(parameter, DTensor), name
        part = name.split(".")[0]
        own[part] = own.get(part, 0) + parameter.to_local().numel()
        whole[part] = whole.get(part, 0) + parameter.numel()
    return {part: own[part] / whole[part] for part in whole}


def test_student_momentum_network_and_teacher_are_cut(ranks, digits):
    for shares in ranks(on_ranks, 2, parts, str(digits.root)):
        assert shares.keys() >= {"backbone", "classifier", "momentum", "teacher", "distiller"}
        for part, share in shares.items():
            assert share == pytest.approx(0.5, abs=0.05), part


def exchanged(process: Process, root: str, engine: str, came: str | None, left: str):
    """Two steps of task 1 from where another world has left it (None: from the start)."""
    config = config_of("mocov2plus", optim=LARS, parallel={"engine": engine})
    stream = Stream.open(root)
    engine_ = build(config, stream, process, double=True)
    first = 0
    if came is None:
        begin(engine_, stream, 0)
        train(engine_, stream, 0, range(1))
        begin(engine_, stream, 1)
    else:
        engine_.restore(Path(came) / "between", within_task=False)
        between = state_of(engine_)
        begin(engine_, stream, 1)
        engine_.restore(Path(came) / "within", within_task=True)
        first = int(np.load(Path(came) / "step.npy"))
        assert between.keys() == {n for n in state_of(engine_) if not n.startswith("teacher.")}
    losses = train(engine_, stream, 1, range(first, first + 2))
    for name, within in (("within", True), ("between", False)):
        folder = Path(left) / name
        folder.mkdir(parents=True, exist_ok=True)
        engine_.snapshot(within).write(folder)
    np.save(Path(left) / "step.npy", first + 2)
    return losses, state_of(engine_)


def test_a_run_goes_from_engine_to_engine_and_world_to_world(ranks, digits, tmp_path):
    root = str(digits.root)
    places = [str(tmp_path / str(number)) for number in range(4)]
    stations = [(1, "ddp"), (4, "fsdp"), (2, "ddp"), (2, "fsdp")]
    found, came = [], None
    for (world, engine), left in zip(stations, places, strict=True):
        answers = ranks(on_ranks, world, exchanged, root, engine, came, left)
        found += answers[0][0]
        came = left
    ((expected, state),) = ranks(on_ranks, 1, straight, root, 2 * len(stations))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for name, tensor in state.items():
        assert np.abs(answers[0][1][name] - tensor).max() < 1e-8, name


def straight(process: Process, root: str, steps: int):
    """The same in one go, by DDP on one rank."""
    stream = Stream.open(root)
    engine = build(config_of("mocov2plus", optim=LARS), stream, process, double=True)
    begin(engine, stream, 0)
    train(engine, stream, 0, range(1))
    begin(engine, stream, 1)
    return train(engine, stream, 1, range(steps)), state_of(engine)
