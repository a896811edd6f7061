"""FSDP2: what is cut is cut, LARS is right on it, and its state and DDP's are one."""

from pathlib import Path

import numpy as np
import pytest
from spread import LARS, SGD, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import config_of
from torch.distributed.tensor import DTensor

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.shards import Split

pytestmark = pytest.mark.timeout(900)


def cut(context: RankContext, root: str):
    """(how far a run with LARS is from DDP's, what of the learner lies here, features)."""
    sections = {"optim": LARS | {"clip_norm": 1.0}}
    fsdp = {"fsdp": {"engine": "fsdp"}}
    apart, _ = against_ddp(context, root, "byol", sections, fsdp, (1, 3), True)
    return apart["fsdp"], shares(context, root), features(context, root)


def shares(context: RankContext, root: str) -> dict[str, float]:
    """The share of all parameters' elements that lies on this rank, by part of the learner."""
    stream = Stream.open(root)
    engine = build(config_of("byol", optim=SGD, parallel={"engine": "fsdp"}), stream, context)
    begin(engine, stream, 1)
    train(engine, stream, 1, range(1))
    own, whole = {}, {}
    for name, parameter in engine.learner.named_parameters():
        assert isinstance(parameter, DTensor), name
        part = name.split(".")[0]
        own[part] = own.get(part, 0) + parameter.to_local().numel()
        whole[part] = whole.get(part, 0) + parameter.numel()
    return {part: own[part] / whole[part] for part in whole}


def features(context: RankContext, root: str) -> float:
    """How far features are from DDP's, of so many images that one rank has a batch more."""
    stream = Stream.open(root)
    split = stream.split(0, "val")
    split = Split(split.folder, split.part, split.index[: len(split) // 2 * 2 - 1])
    found = {}
    for name in ("ddp", "fsdp"):
        batch = {"batch_size": len(split) // 2}
        config = config_of("byol", optim=SGD, parallel={"engine": name}, eval=batch)
        engine = build(config, stream, context)
        evaluator = Evaluator(config, stream, context, lambda what, done, total: None)
        found[name] = evaluator.features(engine.learner, split)
        assert len(found[name]) == len(split)
    return float(np.abs(found["ddp"] - found["fsdp"]).max())


@pytest.fixture(scope="module")
def found(ranks, digits):
    """What each of two ranks says in `cut`."""
    return ranks(on_ranks, 2, cut, str(digits.root))


def test_lars_is_that_of_ddp(found):
    for apart, _, _ in found:
        # In float64: what rounding leaves of one norm summed over two parts.
        assert max(apart.values()) < 1e-9, apart


def test_student_momentum_network_and_teacher_are_cut(found):
    for _, share, _ in found:
        assert share.keys() >= {"backbone", "classifier", "momentum", "teacher", "distiller"}
        for part, own in share.items():
            assert own == pytest.approx(0.5, abs=0.05), part


def test_evaluation_makes_as_many_batches_on_every_rank(found):
    assert [apart for _, _, apart in found] == [0, 0]


def exchanged(context: RankContext, root: str, engine: str, came: str | None, left: str):
    """Two steps of task 1 from where another world has left it (None: from the start)."""
    config = config_of("mocov2plus", optim=LARS, parallel={"engine": engine})
    stream = Stream.open(root)
    engine_ = build(config, stream, context, double=True)
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
    places = [str(tmp_path / str(number)) for number in range(3)]
    losses, _ = exchanged(RankContext(), root, "ddp", None, places[0])
    for rank in ranks(on_ranks, 4, exchanged, root, "fsdp", places[0], places[1])[:1]:
        losses += rank[0]
    last = ranks(on_ranks, 2, exchanged, root, "ddp", places[1], places[2])[0]
    losses += last[0]
    expected, state = straight(root, 6)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    for name, tensor in state.items():
        assert np.abs(last[1][name] - tensor).max() < 1e-8, name


def straight(root: str, steps: int):
    """The same in one go, by DDP on one rank."""
    stream = Stream.open(root)
    engine = build(config_of("mocov2plus", optim=LARS), stream, RankContext(), double=True)
    begin(engine, stream, 0)
    train(engine, stream, 0, range(1))
    begin(engine, stream, 1)
    return train(engine, stream, 1, range(steps)), state_of(engine)
