"""Every engine trains the same model: DDP, FSDP2 and ZeRO 0 to 3, on several real processes."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from spread import ADAMW, OTHERS, SGD, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import SUPERVISED, config_of

from kaizen_dist.common.errors import UsageError
from kaizen_dist.engine import engine_class
from kaizen_dist.stream.manifest import Stream

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"),
]

CLOSE = {"losses": 1e-5, "answers": 1e-5, "state": 1e-4, "teacher": 0, "momentum": 1e-6}
"""The state is compared absolutely, after steps of AdamW of 1e-3 each."""


def compare(ranks, stream, world: int, *arguments, bounds=CLOSE, **more):
    for found, losses in ranks(on_ranks, world, against_ddp, str(stream.root), *arguments, **more):
        assert all(losses[-1][term] != 0 for term in ("kd_features", "kd_classifier"))
        for name, apart in found.items():
            for what, bound in bounds.items():
                assert apart[what] <= bound, (name, apart)


@pytest.mark.parametrize("method", ["byol", SUPERVISED[0]])
def test_all_engines_are_ddp(ranks, digits, method):
    compare(ranks, digits, 2, method, {"optim": ADAMW}, OTHERS, (2, 3))


def test_all_engines_work_alone(ranks, digits):
    compare(ranks, digits, 1, "byol", {"optim": ADAMW}, OTHERS, (1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus", "vicreg"])
def test_all_engines_are_ddp_over_twenty_steps(ranks, digits, method):
    bounds = CLOSE if method in ("byol", "mocov2plus") else CLOSE | {"momentum": 0}
    engines = OTHERS | {"ddp": {}}
    # The network of the documented bounds: where weights are few, rounding is a larger share.
    sections = {"optim": ADAMW, "model": {"backbone": "resnet10", "stem": "cifar"}}
    compare(ranks, digits, 2, method, sections, engines, (3, 20), bounds=bounds, timeout=1800)


@pytest.mark.slow
def test_a_vision_transformer_trains_alike_under_every_engine(ranks, digits):
    """But for what has no gradient: rounding that AdamW brings to the size of its steps."""
    sections = {"optim": ADAMW, "model": {"backbone": "vit_n_4"}}
    bounds = CLOSE | {"losses": 5e-5, "answers": 5e-4, "state": 1e-3}
    compare(ranks, digits, 2, "mocov3", sections, OTHERS, (2, 3), bounds=bounds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_all_engines_are_ddp_on_gpus(ranks, digits):
    world = 2 if torch.cuda.device_count() > 1 else 1
    # Convolutions of a GPU do not sum in one order.
    bounds = {"losses": 1e-3, "answers": 1e-2, "teacher": 0, "momentum": 1e-6}
    compare(ranks, digits, world, "byol", {"optim": ADAMW}, OTHERS, (2, 4), bounds=bounds)


def test_with_micro_batches_clipping_and_recomputation(ranks, digits):
    sections = {"optim": SGD | {"clip_norm": 0.5}, "train": {"batch_size": 16, "accumulate": 2}}
    chosen = {"ddp": {}} | {name: OTHERS[name] for name in ("fsdp", "zero1", "zero3")}
    engines = {name: own | {"activation_checkpointing": True} for name, own in chosen.items()}
    compare(ranks, digits, 2, "byol", sections, engines, (1, 2), bounds=CLOSE | {"state": 1e-5})


def frozen(context, root: str, *engines: str):
    """By engine: what of the student stays bit for bit in two steps of the second task."""
    stream, found = Stream.open(root), {}
    model = {"backbone": "vit_n_4", "frozen_patch": True}
    for engine in engines:
        parallel = ({"ddp": {}} | OTHERS)[engine]
        config = config_of("mocov3", model=model, optim=ADAMW, parallel=parallel)
        built = build(config, stream, context)
        begin(built, stream, 1)
        before = state_of(built)
        train(built, stream, 1, range(2))
        found[engine] = {
            name
            for name, tensor in state_of(built).items()
            if not name.startswith("teacher.") and np.array_equal(tensor, before[name])
        }
    return found


@pytest.mark.slow
def test_a_frozen_patch_stays_under_every_engine(ranks, digits):
    engines = ("ddp", "fsdp", "zero1", "zero3")
    patch = [f"backbone.network.conv_proj.{part}" for part in ("weight", "bias")]
    expected = {f"{who}{name}" for who in ("", "momentum.") for name in patch}
    for found in ranks(on_ranks, 2, frozen, str(digits.root), *engines):
        assert found == dict.fromkeys(engines, expected)


def test_what_does_not_fit_together_is_refused():
    def check(engine, world=2, **sections):
        config = config_of("byol", **sections)
        engine_class(engine).check(config, world)

    for stage in (1, 2, 3):
        with pytest.raises(UsageError, match=r"optim\.name: lars .*parallel\.engine=fsdp"):
            check("deepspeed", parallel={"engine": "deepspeed", "zero_stage": stage})
    check("deepspeed", parallel={"engine": "deepspeed", "zero_stage": 0})
    with pytest.raises(UsageError, match=r"parallel\.precision: .*bf16"):
        check("deepspeed", optim=ADAMW, parallel={"engine": "deepspeed", "precision": "fp16"})
    compiled = {"compile": True, "activation_checkpointing": True}
    with pytest.raises(UsageError, match=r"parallel\.compile: .*activation_checkpointing=false"):
        check("ddp", parallel=compiled)
    with pytest.raises(UsageError, match=r"parallel\.compile: .*parallel\.zero_stage=2"):
        check("deepspeed", optim=ADAMW, parallel={"compile": True, "zero_stage": 3})
    with pytest.raises(UsageError, match=r"parallel\.cuda_graphs: .*parallel\.compile=true"):
        check("ddp", parallel={"cuda_graphs": True})
    graphs = {"compile": True, "cuda_graphs": True}
    check("ddp", parallel=graphs)
    with pytest.raises(UsageError, match=r"parallel\.cuda_graphs: .*side_stream=false"):
        check("ddp", parallel=graphs | {"side_stream": True})
    for engine in ("ddp", "fsdp", "deepspeed"):
        sections = {"optim": ADAMW, "train": {"batch_size": 16, "accumulate": 8}}
        with pytest.raises(UsageError, match=r"train.accumulate: 8 lanes .*that fit: 1, 2, 4 "):
            check(engine, **sections)
