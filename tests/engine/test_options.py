"""The options of every engine: micro-batches, recomputation, precision, compiling."""

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from spread import ADAMW, SGD, begin, build, on_ranks, state_of, train
from test_worlds import config_of, loader_of
from torch import nn
from torch.nn.utils import clip_grad_norm_

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.options import autocast, micro_batches, recompute_blocks
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream

pytestmark = pytest.mark.timeout(900)

METHODS = ("byol", "simclr", "mocov2plus", "vicreg", "barlow_twins")


def close(ours, theirs, rel):
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=rel)


# ---- micro-batches and clipping ------------------------------------------------------------


def test_micro_batches_are_the_same_images_at_every_world_size():
    lanes, each = 8, 3
    images = torch.arange(lanes * each)
    views = torch.stack([images, images + 100])[:, :, None]

    def seen(world: int) -> list[set[int]]:
        found = [set(), set()]
        for rank in range(world):
            own = slice(rank * lanes * each // world, (rank + 1) * lanes * each // world)
            parts = micro_batches(views[:, own], images[own], lanes // world, 2)
            for number, (v, labels) in enumerate(parts):
                assert v.shape == (2, 12 // world, 1)
                assert v[0, :, 0].tolist() == labels.tolist()
                assert (v[1] - v[0] == 100).all()
                found[number] |= set(labels.tolist())
        return found

    # Whole lanes: 0, 2, 4, 6 and 1, 3, 5, 7.
    assert seen(1)[0] == {0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20}
    assert seen(1) == seen(2) == seen(4)


def test_a_step_is_the_mean_of_its_micro_batches_clipped(digits):
    optim = SGD | {"clip_norm": 0.5, "momentum": 0.0}
    config = config_of("byol", optim=optim, train={"batch_size": 16, "accumulate": 2})
    engine = build(config, digits, RankContext(), double=True)
    begin(engine, digits, 0)
    by_hand = copy.deepcopy(engine.learner)
    batch = loader_of(config, digits, 0, 0, 1).batch(0, 0)
    losses = engine.report(engine.step(batch, 0))

    # 8 lanes of 2 images each; there is no replay in the first task.
    even = [i for i in range(16) if i // 2 % 2 == 0]
    odd = [i for i in range(16) if i // 2 % 2 == 1]
    totals = [by_hand(batch.views[:, p].double(), batch.labels[p]).total for p in (even, odd)]
    sum(totals).div(2).backward()
    trained = [p for p in by_hand.parameters() if p.requires_grad]
    assert clip_grad_norm_(trained, 0.5) > 0.5
    expected = {name: p for name, p in by_hand.named_parameters() if p.grad is not None}
    assert losses["loss"] == pytest.approx(float(sum(totals).detach()) / 2, rel=1e-12)
    scale = 16 / 256
    for name, p in engine.learner.named_parameters():
        if name in expected and not name.startswith("classifier"):
            stepped = expected[name] - optim["lr"] * scale * (
                expected[name].grad + 1e-5 * expected[name]
            )
            assert (p - stepped).abs().max() < 1e-12, name


def accumulated(context: RankContext, root: str):
    stream = Stream.open(root)
    config = config_of("simclr", optim=SGD, train={"batch_size": 16, "accumulate": 2})
    engine = build(config, stream, context, double=True)
    begin(engine, stream, 1)
    return train(engine, stream, 1, range(3)), state_of(engine)


def test_micro_batches_mean_the_same_on_two_ranks(ranks, digits):
    expected, state = accumulated(RankContext(), str(digits.root))
    for losses, found in ranks(on_ranks, 2, accumulated, str(digits.root)):
        close(losses, expected, 1e-9)
        assert max(np.abs(found[name] - t).max() for name, t in state.items()) < 1e-9


# ---- recomputation -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet10", "resnet50", "vit_ti_4"])
def test_recomputed_blocks_change_nothing(name):
    torch.manual_seed(0)
    settings = config_of("byol", model={"backbone": name, "stem": "auto"}).model
    plain = build_backbone(settings, 8).double()
    recomputed = copy.deepcopy(plain)
    recompute_blocks(recomputed)
    copied = copy.deepcopy(recomputed)
    assert len(plain.blocks()) > 3
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    kept = {}
    for network in (plain, recomputed):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t
        ):
            out = network(images)
        kept[network] = len(saved)
        out.square().sum().backward()
    assert kept[recomputed] < kept[plain] / 2, "activations inside of blocks are not kept"
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) if p.grad is not None else q.grad is None, name
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(a, b), name
    # A copy (a teacher) is a network of its own.
    copied.eval()
    with torch.no_grad():
        before = copied(images)
        for p in recomputed.parameters():
            p.zero_()
        assert torch.equal(copied(images), before)


# ---- precision -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "precision"), [*((method, "bf16") for method in METHODS), ("byol", "fp16")]
)
def test_half_precision_is_for_networks_only(digits, method, precision):
    config = config_of(method, optim=ADAMW, parallel={"precision": precision})
    learner = Learner(config, digits.num_classes)
    learner.begin_task(first=False)
    batch = loader_of(config, digits, 1, 0, 1).batch(0, 0)
    views, labels = batch.views[:, ::3], batch.labels[::3]
    expected = copy.deepcopy(learner)(views, labels)
    seen = {}
    learner.backbone.blocks()[0].register_forward_hook(
        lambda module, args, out: seen.update(block=out.dtype)
    )
    with autocast(config.parallel, torch.device("cpu")):
        losses = learner(views, labels)
    assert seen["block"] == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for name, loss, full in zip(losses.names(), losses, expected, strict=True):
        assert loss.dtype == torch.float32, name
        assert float(loss.detach()) == pytest.approx(float(full.detach()), rel=0.1, abs=0.02), name
    losses.total.backward()
    tensors = [*learner.parameters(), *learner.buffers()]
    assert all(t.dtype in (torch.float32, torch.int64) for t in tensors)


def halved(context: RankContext, root: str, folder: str):
    """Two engines in fp16; what each learns, and whether it goes on from what it saved."""
    stream = Stream.open(root)
    found = {}
    for name in ("ddp", "fsdp"):
        kept = Path(folder) / name
        kept.mkdir(exist_ok=True)
        context.barrier()
        parallel = {"engine": name, "precision": "fp16"}
        engine = build(config_of("byol", optim=ADAMW, parallel=parallel), stream, context)
        begin(engine, stream, 1)
        engine.scaler.load_state_dict(engine.scaler.state_dict() | {"scale": 2.0**40})
        losses = train(engine, stream, 1, range(2))
        state = engine.scaler.state_dict()
        engine.snapshot(within_task=True).write(kept)
        context.barrier()
        again = build(config_of("byol", optim=ADAMW, parallel=parallel), stream, context)
        begin(again, stream, 1)
        again.restore(kept, within_task=True)
        same = again.scaler.state_dict() == state
        onwards = [train(e, stream, 1, range(2, 3)) for e in (engine, again)]
        found[name] = losses, state["scale"], same, onwards
    return found


@pytest.mark.slow
def test_the_scaler_is_part_of_the_state(ranks, digits, tmp_path):
    for found in ranks(on_ranks, 2, halved, str(digits.root), str(tmp_path)):
        for _, scale, same, (straight, resumed) in found.values():
            # Steps of infinite gradients are left out, on all ranks, and halve the scale.
            assert scale < 2.0**40
            assert same
            assert straight == resumed
        close(found["fsdp"][0], found["ddp"][0], 1e-5)
        assert found["fsdp"][1] == found["ddp"][1]


def bfloat(context: RankContext, root: str):
    stream = Stream.open(root)
    found = {}
    engines = {"ddp": {}, "fsdp": {"engine": "fsdp"}, "float": {"precision": "fp32"}}
    if find_spec("deepspeed") is not None:
        engines["zero3"] = {"engine": "deepspeed", "zero_stage": 3}
    for name, parallel in engines.items():
        config = config_of("byol", optim=ADAMW, parallel={"precision": "bf16"} | parallel)
        engine = build(config, stream, context)
        begin(engine, stream, 1)
        found[name] = train(engine, stream, 1, range(2))
    return found


@pytest.mark.slow
def test_bf16_is_the_same_under_every_engine(ranks, digits):
    for found in ranks(on_ranks, 2, bfloat, str(digits.root)):
        for name in found.keys() - {"ddp", "float"}:
            close(found[name], found["ddp"], 1e-4)
        for half, full in zip(found["ddp"], found["float"], strict=True):
            assert half["loss"] != full["loss"]
            assert half["loss"] == pytest.approx(full["loss"], rel=0.1)


# ---- compiling -----------------------------------------------------------------------------


def test_compiled_backbones_keep_their_names_and_copies(digits, monkeypatch):
    """With a compiler that only records what it is given: nothing is built."""
    compiled = []

    def record(module: nn.Module) -> None:
        compiled.append(module)

    monkeypatch.setattr(nn.Module, "compile", record)
    config = config_of("byol", optim=SGD, parallel={"compile": True})
    engine = build(config, digits, RankContext())
    names = list(engine.learner.state_dict())
    begin(engine, digits, 0)
    assert compiled == [engine.learner.backbone, engine.learner.momentum.backbone]
    assert list(engine.learner.state_dict()) == names
    begin(engine, digits, 1)
    assert engine.learner.teacher.backbone in compiled


def test_only_networks_without_gradients_are_replayed(digits, monkeypatch):
    """What a graph computes lies in memory that its next replay takes: it is handed out as a copy,
    and the gradients of a student's two views would not survive it."""
    modes = {}

    def record(module: nn.Module, **how: str) -> None:
        modes[module] = how.get("mode")

    monkeypatch.setattr(nn.Module, "compile", record)
    parallel = {"compile": True, "cuda_graphs": True}
    engine = build(config_of("byol", optim=SGD, parallel=parallel), digits, RankContext())
    begin(engine, digits, 0)
    modes.clear()
    begin(engine, digits, 1)
    student, momentum, teacher = (
        part.backbone for part in (engine.learner, engine.learner.momentum, engine.learner.teacher)
    )
    assert modes == {
        student: None,
        momentum.network: "reduce-overhead",
        teacher.network: "reduce-overhead",
    }
    kept = torch.ones(2, 512)
    monkeypatch.setattr(type(teacher.network), "forward", lambda network, images: kept)
    images = torch.zeros(2, 3, 8, 8)
    assert student(images) is kept
    assert teacher(images).data_ptr() != kept.data_ptr()


def compiled_and_not(context: RankContext, root: str):
    stream = Stream.open(root)
    found = {}
    graphs = {"cuda_graphs": True}  # On a CPU there are none, but the way to them is the same.
    engines = ({}, graphs, {"engine": "fsdp"}, {"engine": "deepspeed", "zero_stage": 1})
    for parallel in engines:
        name = str(parallel)
        for compile_ in (False, True):
            own = parallel | {"compile": compile_}
            own["cuda_graphs"] = compile_ and "cuda_graphs" in parallel
            engine = build(config_of("byol", optim=ADAMW, parallel=own), stream, context)
            begin(engine, stream, 1)
            losses = train(engine, stream, 1, range(2))
            found.setdefault(name, []).append((losses, state_of(engine)))
    return {
        name: (
            plain[0],
            compiled[0],
            max(np.abs(plain[1][n] - t).max() for n, t in compiled[1].items()),
        )
        for name, (plain, compiled) in found.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_training_differs_by_rounding(ranks, digits):
    for found in ranks(on_ranks, 2, compiled_and_not, str(digits.root), timeout=1700):
        for plain, compiled, state in found.values():
            close(compiled, plain, 1e-3)
            assert state < 5e-3
