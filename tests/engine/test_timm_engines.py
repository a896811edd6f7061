"""Backbones of timm's over the ranks: with every engine, and at every world size, the same run.

timm's BatchNorm has an activation inside; its blocks take more than one input (rotary positions).
"""

import numpy as np
import pytest
import torch
from spread import SGD, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import config_of

from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.batchnorm import synchronise
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.stream.manifest import Stream

pytest.importorskip("timm")

pytestmark = pytest.mark.timeout(900)

ROTARY = "timm/eva02_tiny_patch14_224"
"""Of the family of DINOv3's, and its smallest."""


def sections(name: str, size: int = 32) -> dict:
    views = {"backend": "torch", "size": size}
    return {"model": {"backbone": name}, "views": views, "optim": SGD}


def learnt(context: RankContext, root: str, name: str):
    """Losses of a few steps of two tasks in float64, and the state after them."""
    stream = Stream.open(root)
    engine = build(config_of("byol", **sections(name)), stream, context, double=True)
    losses = []
    for task in (0, 1):
        begin(engine, stream, task)
        losses += train(engine, stream, task, range(2))
    return losses, state_of(engine)


@pytest.mark.parametrize("name", ["timm/test_byobnet", "timm/test_convnext"])
def test_a_run_means_the_same_at_every_world_size(ranks, digits, name):
    root = str(digits.root)
    expected, alone = learnt(RankContext(), root, name)
    for losses, state in ranks(on_ranks, 2, learnt, root, name):
        for ours, theirs in zip(losses, expected, strict=True):
            for term, value in theirs.items():
                assert ours[term] == pytest.approx(value, rel=1e-9, abs=1e-9), term
        assert max(float(np.abs(state[n] - t).max()) for n, t in alone.items()) < 1e-7


FSDP, RECOMPUTED = {"engine": "fsdp"}, {"activation_checkpointing": True}
ZERO3 = {"engine": "deepspeed", "zero_stage": 3}


@pytest.mark.parametrize(
    ("name", "size", "engines"),
    [
        ("timm/test_vit", 32, [FSDP, RECOMPUTED, ZERO3]),
        ("timm/test_resnet", 32, [FSDP | RECOMPUTED]),
        (ROTARY, 28, [FSDP | RECOMPUTED]),
    ],
)
def test_engines_agree(ranks, digits, name, size, engines):
    named = {str(engine): engine for engine in engines}
    arguments = (str(digits.root), "simclr", sections(name, size), named, (1, 1), True)
    for apart, _ in ranks(on_ranks, 2, against_ddp, *arguments):
        for engine, found in apart.items():
            # DeepSpeed's own copies of the weights are float32.
            assert max(found.values()) < (1e-6 if "deepspeed" in engine else 1e-8), engine


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_global_statistics_leave_a_norms_activation_in_place(device):
    settings = config_of("byol", **sections("timm/test_byobnet")).model
    backbone = build_backbone(settings, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    expected, names = backbone(images), list(backbone.state_dict())
    kinds = {type(m).__name__ for m in backbone.modules()}
    assert "BatchNormAct2d" in kinds
    synchronise(backbone, torch.device(device))
    kinds = {type(m).__name__ for m in backbone.modules()}
    assert "BatchNormAct2d" not in kinds
    assert list(backbone.state_dict()) == names
    assert torch.equal(backbone(images), expected)
