"""Backbones: their sizes against published parameter counts, stems, and refusals."""

import pytest
import torch
from torch import nn
from torchvision import models

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.learning import ModelConfig
from kaizen_dist.learner.backbone import build_backbone


def build(size=32, **config):
    return build_backbone(ModelConfig(**config), size)


@pytest.mark.parametrize(
    ("name", "size", "features", "parameters"),
    [
        # Published counts, less those of the 1000-class head.
        ("resnet18", 224, 512, 11_689_512 - 513_000),
        ("resnet50", 224, 2048, 25_557_032 - 2_049_000),
        ("vit_s_16", 224, 384, 22_050_664 - 385_000),
        ("vit_b_16", 224, 768, 86_567_656 - 769_000),
    ],
)
def test_published_parameter_counts(name, size, features, parameters):
    backbone = build(size, backbone=name)
    assert backbone.features == features
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_vit_b_16_is_torchvisions():
    with torch.device("meta"):
        theirs = models.vit_b_16().state_dict()
    ours = build(224, backbone="vit_b_16").network.state_dict()
    assert {k: v.shape for k, v in theirs.items() if "heads" not in k} == {
        k: v.shape for k, v in ours.items()
    }


@pytest.mark.parametrize(
    "name", ["resnet10", "resnet14", "resnet18", "vit_n_2", "vit_ti_4", "vit_s_8"]
)
def test_features_of_small_images(name):
    backbone = build(16, backbone=name).eval()
    assert backbone(torch.randn(2, 3, 16, 16)).shape == (2, backbone.features)


def stem(**config):
    network = build(**{"backbone": "resnet10", **config}).network
    return network.conv1, network.maxpool


@pytest.mark.parametrize(("padding", "side"), [(1, 32), (2, 34)])
def test_cifar_stem_keeps_the_resolution(padding, side):
    conv, pool = stem(stem_padding=padding)
    assert (conv.kernel_size, conv.stride, conv.bias) == ((3, 3), (1, 1), None)
    assert isinstance(pool, nn.Identity)
    assert conv(torch.randn(1, 3, 32, 32)).shape == (1, 64, side, side)


@pytest.mark.parametrize(
    ("size", "choice", "kernel"),
    [(64, "auto", 3), (65, "auto", 7), (32, "imagenet", 7), (224, "cifar", 3)],
)
def test_the_stem_is_chosen_by_size_or_by_name(size, choice, kernel):
    conv, pool = stem(size=size, stem=choice)
    assert conv.kernel_size == (kernel, kernel)
    assert isinstance(pool, nn.Identity) == (kernel == 3)


def test_an_unknown_name_is_met_with_the_nearest_ones():
    with pytest.raises(UsageError, match=r"model\.backbone: 'resnet81' is unknown.*resnet18"):
        build(backbone="resnet81")
    with pytest.raises(UsageError, match="Known: resnet10"):
        build(backbone="qqq")


def test_a_stem_or_patch_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"model\.stem: 'cifar'.*vit_s_8.*stem: auto"):
        build(backbone="vit_s_8", stem="cifar")
    with pytest.raises(UsageError, match=r"patches of 16 px.*views\.size=20.*2, 4, 5, 10"):
        build(20, backbone="vit_s_16")


def test_activations_lie_channels_last_and_weights_as_they_were():
    backbone = build_backbone(ModelConfig(backbone="resnet10"), 8)
    layouts = []
    last = backbone.network.layer4
    last.register_forward_hook(
        lambda *call: layouts.append(call[-1].is_contiguous(memory_format=torch.channels_last))
    )
    image = torch.randn(2, 3, 16, 16)
    found = backbone(image)
    found.sum().backward()
    assert layouts == [True]
    assert all(t.is_contiguous() for t in backbone.state_dict().values())
    assert all(p.grad.is_contiguous() for p in backbone.parameters())
    backbone.layout = torch.contiguous_format
    torch.testing.assert_close(backbone(image), found, rtol=1e-4, atol=1e-5)
    assert layouts == [True, False]
