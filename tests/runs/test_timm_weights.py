"""Weights of timm's and for timm's backbones: every name accounted for, sizes adapted by timm."""

import re

import pytest
import torch
from safetensors.torch import save_file
from test_initial_weights import OfLearner, backbone

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.runs.initial_weights import match, start_from

timm = pytest.importorskip("timm")

DINOV2 = "vit_small_patch14_dinov2.lvd142m"
SWIN = "swin_tiny_patch4_window7_224"


def of_timm(name, size=32):
    return backbone(f"timm/{name}", size, "auto")


def test_a_vision_transformers_positions_are_resized_as_timm_does():
    state = timm.create_model("test_vit", img_size=64).state_dict()
    small = of_timm("test_vit")
    weights, started = match("f", state, small)
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], [2, 2], [4, 4])
    torch.testing.assert_close(weights["pos_embed"], expected)
    assert started.resized == ["pos_embed [1, 17, 64] for [1, 5, 64]"]
    assert started.missing == []
    assert started.left_over == ["head.weight", "head.bias"]


@pytest.mark.parametrize("classes", [0, 5])
def test_swins_tables_are_resized_and_nothing_else_is(classes):
    state = timm.create_model(SWIN, img_size=112, num_classes=classes).state_dict()
    small = of_timm(SWIN)
    weights, started = match("f", state, small)
    assert started.missing == []
    assert {n.split()[0] for n in started.resized} == {
        n for n in state if "bias_table" in n and state[n].shape != weights[n].shape
    }
    assert started.resized
    assert [n.partition(".")[0] for n in started.left_over] == ["head"] * min(classes, 2)
    for name, tensor in weights.items():
        assert "bias_table" in name or torch.equal(tensor, state[name]), name


def test_dinov2_as_it_was_published():
    torch.manual_seed(1)
    state = timm.create_model(DINOV2, num_classes=0, img_size=56).state_dict()
    state["mask_token"] = torch.zeros(1, 384)
    network = of_timm(DINOV2, 28)
    weights, started = match("f", {f"teacher.backbone.{n}": t for n, t in state.items()}, network)
    assert (started.missing, started.left_over) == ([], ["teacher.backbone.mask_token"])
    assert [n.split()[0] for n in started.resized] == ["pos_embed"]
    assert weights.keys() == network.network.state_dict().keys()


def test_convnext_by_the_names_of_its_authors():
    theirs = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.norm", "norm"),
    ]
    own = timm.create_model("test_convnext", num_classes=0).state_dict()
    state = {}
    for name, tensor in own.items():
        for ours, published in theirs:
            name = re.sub(ours, published, name)
        state[name] = tensor
    assert state.keys().isdisjoint(own.keys())
    weights, started = match("f", state | {"epoch": torch.ones(1)}, of_timm("test_convnext"))
    assert (started.missing, started.left_over, started.loaded) == ([], ["epoch"], len(own))
    assert all(torch.equal(weights[name], tensor) for name, tensor in own.items())


def test_torchvisions_network_takes_timms_weights():
    state = timm.create_model("resnet18").state_dict()
    _, started = match("f", state, backbone("resnet18"))
    assert (started.missing, started.left_over) == ([], ["fc.weight", "fc.bias"])


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What timm would fetch is a file here."""
    torch.manual_seed(5)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        timm.models._hub, "hf_hub_download", lambda **_: str(tmp_path / "model.safetensors")
    )
    return state


def test_timms_own_weights(fetched):
    network = of_timm("test_vit")
    started = start_from("timm:test_vit.r160_in1k", OfLearner(network))
    assert (started.source, len(started.sha256)) == ("timm:test_vit.r160_in1k", 64)
    assert started == start_from("timm:test_vit.r160_in1k", OfLearner(network))
    assert started.missing == []
    assert started.left_over == ["head.weight", "head.bias"]
    assert started.resized == ["pos_embed [1, 101, 64] for [1, 5, 64]"]
    assert torch.equal(
        network.network.blocks[0].attn.qkv.weight, fetched["blocks.0.attn.qkv.weight"]
    )


def test_without_a_network_the_cure_is_named(monkeypatch):
    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", offline)
    with pytest.raises(DataError, match=r"timm:test_vit cannot be fetched .*give the file"):
        start_from("timm:test_vit", OfLearner(of_timm("test_vit")))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("timm:resnet81", r"timm has no model 'resnet81'; did you mean resnet"),
        ("timm:vit_tiny_patch16_18x2", "timm has no"),
        ("timm:test_vit3.nothing", "did you mean test_vit3.r160_in1k"),
    ],
)
def test_weights_that_there_are_not(source, says):
    with pytest.raises(UsageError, match=rf"model\.init: .*{says}"):
        start_from(source, OfLearner(of_timm("test_vit")))
