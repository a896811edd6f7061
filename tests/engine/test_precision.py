"""Half precision trains as full precision does, and norms and losses stay in float32."""

import pytest
import torch
from spread import ADAMW, begin, build, train
from test_worlds import config_of, loader_of

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.learner import losses as formulas
from kaizen_dist.stream.manifest import Stream

STEPS = 50


def losses_of(stream: Stream, method: str, precision: str, steps: int):
    optim = ADAMW | {"lr": 3e-4}
    config = config_of(
        method,
        optim=optim,
        parallel={"precision": precision},
        train={"batch_size": 64},
        replay={"fraction": 0.5, "batch_size": 32},
    )
    engine = build(config, stream, RankContext())
    begin(engine, stream, 1)
    return engine, train(engine, stream, 1, range(steps))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus", "vicreg"])
def test_losses_of_bf16_are_within_one_per_cent(digits, method):
    """Of the mean over ten steps, by which the noise of single steps is no matter."""
    _, full = losses_of(digits, method, "fp32", STEPS)
    _, half = losses_of(digits, method, "bf16", STEPS)
    for since in range(0, STEPS, 10):
        ours, expected = (
            sum(row["loss"] for row in rows[since : since + 10]) for rows in (half, full)
        )
        assert ours == pytest.approx(expected, rel=0.01), since


def test_norms_losses_and_weights_are_full_precision(digits, monkeypatch):
    seen = []
    original = formulas.F.cosine_similarity

    def spying(prediction, target, **kwargs):
        seen.extend([prediction.dtype, target.dtype])
        return original(prediction, target, **kwargs)

    monkeypatch.setattr(formulas.F, "cosine_similarity", spying)
    features = []
    engine, _ = losses_of(digits, "byol", "bf16", 0)
    engine.learner.backbone.register_forward_hook(lambda *call: features.append(call[-1].dtype))
    train(engine, digits, 1, range(1))
    assert set(features) == {torch.bfloat16}
    assert set(seen) == {torch.float32}
    kinds = {tensor.dtype for _, tensor in engine.full_state() if tensor.is_floating_point()}
    assert kinds == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_that_is_not_logged_never_waits_for_the_gpu(digits, precision, optimizer):
    config = config_of(
        "mocov2plus",
        optim={"name": optimizer, "lr": 0.01, "warmup_epochs": 0},
        parallel={"precision": precision},
    )
    device = torch.device("cuda", 0)
    engine = build(config, digits, RankContext(device=device))
    begin(engine, digits, 1)
    batch = loader_of(config, digits, 1, 0, 1).batch(0, 0).to(device, torch.float32)
    engine.step(batch, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 3):
            engine.step(batch, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
