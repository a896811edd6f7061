"""Backbones of timm's: that they are timm's own, that they are fit to train, and refusals."""

import sys

import pytest
import torch
from torch import nn

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import validate
from kaizen_dist.config.learning import ModelConfig
from kaizen_dist.learner.backbone import build_backbone, freeze_patch
from kaizen_dist.learner.first_weights import UntrainedBackbone, seeded
from kaizen_dist.learner.flops import step_flops

timm = pytest.importorskip("timm")

SWIN = "swin_tiny_patch4_window7_224"
DINOV2, DINOV3 = "vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"
KINDS = {
    "test_resnet": (32, 4),
    "test_vit": (32, 6),
    "test_convnext": (32, 9),
    SWIN: (32, 12),
    DINOV2: (28, 12),
    DINOV3: (32, 12),
}
"""Side of a view, and blocks."""
REST = [
    "test_byobnet",
    "test_coatnet",
    "test_efficientnet",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_vit_relpos",
]


def build(name, size=32, **model):
    return build_backbone(ModelConfig(backbone=f"timm/{name}", **model), size)


@pytest.mark.parametrize(("name", "size"), [(n, size) for n, (size, _) in KINDS.items()])
def test_the_network_is_timms_and_its_first_weights_are_a_function_of_the_seed(name, size):
    def of_seed(seed: int):
        values = {"model": {"backbone": f"timm/{name}"}, "views": {"size": size}}
        return UntrainedBackbone(validate(values | {"train": {"seed": seed}}, "the test")).backbone

    backbone, again, other = of_seed(1), of_seed(1), of_seed(2)
    takes_size = {} if "resnet" in name or "convnext" in name else {"img_size": size}
    with seeded(1, "backbone"):
        theirs = timm.create_model(name, num_classes=0, **takes_size).eval()
    for state in (again.network.state_dict(), theirs.state_dict()):
        ours = backbone.network.state_dict()
        assert ours.keys() == state.keys()
        assert all(torch.equal(ours[key], expected) for key, expected in state.items())
    apart = zip(backbone.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in apart)
    images = torch.randn(2, 3, size, size)
    features = backbone.eval()(images)
    assert features.shape == (2, backbone.features)
    torch.testing.assert_close(features, theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS, *REST])
def test_training_draws_no_random_numbers_and_every_weight_is_in_few_blocks(name):
    size, count = KINDS.get(name, (32, None))
    backbone = build(name, size)
    before = torch.random.get_rng_state()
    backbone.train()(torch.randn(2, 3, size, size)).sum().backward()
    expected = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    torch.randn(2, 3, size, size)
    assert torch.equal(torch.random.get_rng_state(), expected), "nothing else was drawn"
    blocks = backbone.blocks()
    assert count is None or len(blocks) == count
    held = [id(p) for block in blocks for p in block.parameters()]
    assert len(held) == len(set(held)), "no block lies in another"
    sizes = {id(p): p.numel() for p in backbone.parameters()}
    assert len(blocks) > 2
    assert sum(sizes[p] for p in held) > 0.3 * sum(sizes.values())


def test_activations_lie_channels_last_where_they_are_maps():
    layouts = {}
    for name in ("test_resnet", "test_convnext", "test_vit"):
        backbone = build(name)
        image = torch.randn(2, 3, 32, 32)
        found = backbone(image)
        layouts[name] = backbone.layout
        backbone.layout = torch.contiguous_format
        torch.testing.assert_close(backbone(image), found, rtol=1e-3, atol=1e-4)
        assert all(t.is_contiguous() for t in backbone.state_dict().values())
    maps, rows = torch.channels_last, torch.contiguous_format
    assert layouts == {"test_resnet": maps, "test_convnext": maps, "test_vit": rows}


@pytest.mark.parametrize("name", KINDS)
def test_layers_are_those_of_timms_own_layer_wise_rates(name):
    param_groups_layer_decay = pytest.importorskip("timm.optim").param_groups_layer_decay
    backbone = build(name, KINDS[name][0])
    groups = param_groups_layer_decay(
        backbone.network, weight_decay=0, layer_decay=0.5, min_scale=0
    )
    named = {id(p): f"network.{n}" for n, p in backbone.network.named_parameters()}
    theirs = {named[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    ours = backbone.layers()
    assert ours.keys() == theirs.keys()
    top = max(ours.values())
    # timm counts what follows the last block to the head, where it is not in the pattern.
    head = {n for n, scale in theirs.items() if scale == 1 and ".head." in n}
    extra = 1 if head else 0
    for layer in ours.keys() - head:
        assert 0.5 ** (top - ours[layer] + extra) == theirs[layer], layer
    assert all(ours[name] == top for name in head)


def test_operations_are_counted():
    values = {"model": {"backbone": "timm/test_vit"}, "train": {"batch_size": 8}}
    assert step_flops(validate(values, "the test"), 10).student > 0


@pytest.mark.parametrize("name", ["test_vit", SWIN, DINOV3])
def test_a_patch_projection_can_be_frozen(name):
    backbone = build(name)
    freeze_patch(backbone)
    frozen = [n for n, p in backbone.network.named_parameters() if not p.requires_grad]
    assert frozen == ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    values = {"model": {"backbone": f"timm/{name}", "frozen_patch": True}}
    assert validate(values, "the test").model.frozen_patch


class Doubling(nn.Module):
    """A model that makes a tuple, a map, or random numbers, as `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Conv2d(3, 4, 3)
        if kind == "statistics":
            self.register_buffer("running_var", torch.zeros(4))

    def forward(self, x):
        rows = self.layer(x).mean((2, 3))
        if self.kind == "random":
            return rows + torch.rand_like(rows)
        return {"tuple": (rows, rows), "map": self.layer(x)}.get(self.kind, rows)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("tuple", r"makes tuple of two images.*pooled features"),
        ("map", r"makes \(2, 4, 30, 30\) of two images.*pooled features"),
        ("random", r"draws random numbers.*rand.*another model"),
        ("statistics", r"takes batch statistics that are not BatchNorm's"),
    ],
)
def test_a_model_that_is_no_backbone_is_refused(monkeypatch, kind, says):
    def made(name, pretrained, num_classes):
        return Doubling(kind)

    monkeypatch.setattr(timm, "create_model", made)
    monkeypatch.setattr(timm, "is_model", lambda name: True)
    with pytest.raises(UsageError, match=rf"model\.backbone: timm/double_{kind}.*{says}"):
        build(f"double_{kind}")


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"patches of 14 px.*views\.size=32.*e\.g\. 28"):
        build(DINOV2)
    with pytest.raises(UsageError, match=r"efficientformer_l1.*views\.size=32.*its own, 224"):
        build("efficientformer_l1")


def test_a_stem_or_patch_that_it_has_not_is_refused():
    with pytest.raises(UsageError, match=r"model\.stem: 'cifar'.*timm/test_vit.*stem: auto"):
        build("test_vit", stem="cifar")
    with pytest.raises(UsageError, match=r"model\.frozen_patch: ResNet has no patches"):
        freeze_patch(build("test_resnet"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet81", r"no model 'resnet81'; did you mean resnet"),
        (
            "vit_small_patch14_dinov2.lvd",
            r"no model.*did you mean vit_small_patch14_dinov2\.lvd142m",
        ),
        ("hf-hub:timm/resnet18", r"no model 'hf-hub:timm/resnet18'.*list_models"),
        ("local-dir:/tmp", "no model"),
        ("", "no model ''"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest_ones(name, says):
    with pytest.raises(UsageError, match=r"model\.backbone: timm has " + says):
        build(name)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm.*pip install 'kaizen-dist\[timm\]'"):
        build("test_nothing")
