"""Weights that a run starts from: every name accounted for, nothing in silence."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.config.learning import ModelConfig
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.runs.initial_weights import match, report, start_from


def backbone(name="resnet18", size=32, stem="imagenet"):
    return build_backbone(ModelConfig(backbone=name, stem=stem), size)


class OfLearner:
    """What `start_from` needs of a learner."""

    def __init__(self, network, momentum=None):
        self.backbone = network
        self.momentum = momentum


@pytest.fixture(scope="module")
def given():
    """torchvision's own network, with its head."""
    torch.manual_seed(1)
    return models.resnet18(num_classes=7)


PREFIXES = {
    "torchvision": lambda state: state,
    "DDP": lambda state: {f"module.{name}": t for name, t in state.items()},
    "MoCo": lambda state: {"state_dict": {f"module.encoder_q.{n}": t for n, t in state.items()}},
    "Lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"backbone.{n}": t for n, t in state.items()},
    },
    "ours": lambda state: {f"backbone.network.{name}": t for name, t in state.items()},
}


@pytest.mark.parametrize("layout", PREFIXES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_features_are_those_of_torchvisions_network(tmp_path, given, layout, suffix):
    content, path = PREFIXES[layout](given.state_dict()), tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(content, path)
    else:
        nested = content.get("state_dict")
        save_file(nested or content, path)
    network, images = backbone(), torch.rand(2, 3, 32, 32)
    started = start_from(str(path), OfLearner(network))
    given.eval(), network.eval()
    plain = torch.nn.Sequential(*list(given.children())[:-1])
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(images).flatten(1))
    assert (started.missing, started.resized) == ([], [])
    left_over = sorted(name[name.index("fc.") :] for name in started.left_over)
    assert left_over == ["fc.bias", "fc.weight"]
    assert started.loaded == len(given.state_dict()) - 2
    assert len(started.sha256) == 64


def test_the_momentum_network_starts_there_too(tmp_path, given):
    torch.save(given.state_dict(), tmp_path / "w.pth")
    slow = OfLearner(backbone())
    student = backbone()
    start_from(str(tmp_path / "w.pth"), OfLearner(student, slow))
    for mine, theirs in zip(
        student.state_dict().values(), slow.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_another_stem_is_missing_and_said_so(given):
    network = backbone(stem="cifar")
    before = network.network.conv1.weight.clone()
    weights, started = match("f.pt", given.state_dict(), network)
    network.network.load_state_dict(weights, strict=False)
    assert started.missing == ["conv1.weight [64, 3, 7, 7] for [64, 3, 3, 3]"]
    assert torch.equal(network.network.conv1.weight, before)
    assert list(report(started)) == [
        f"the backbone starts from f.pt: {len(given.state_dict()) - 3} tensors",
        "WARNING: not there, and random: conv1.weight [64, 3, 7, 7] for [64, 3, 3, 3]",
        "left over: conv1.weight, fc.weight, fc.bias",
    ]


def test_older_files_lack_counters(given):
    state = {n: t for n, t in given.state_dict().items() if "num_batches" not in n}
    weights, started = match("f.pt", state, backbone())
    assert started.missing == []
    assert len(weights) == len(state) - 2


def test_half_precision_becomes_that_of_the_backbone(given):
    weights, started = match(
        "f.pt", {n: t.half() for n, t in given.state_dict().items()}, backbone()
    )
    assert {t.dtype for n, t in weights.items() if "num_batches" not in n} == {torch.float32}
    assert started.missing == []


def test_a_vision_transformer_of_another_size():
    """Positions as torchvision's own function resizes them."""
    large, small = backbone("vit_ti_16", 64, "auto"), backbone("vit_ti_16", 32, "auto")
    state = large.network.state_dict()
    weights, started = match("f.pt", state, small)
    expected = models.vision_transformer.interpolate_embeddings(32, 16, dict(state))
    positions = "encoder.pos_embedding"
    torch.testing.assert_close(weights[positions], expected[positions])
    assert started.resized == [f"{positions} [1, 17, 192] for [1, 5, 192]"]
    assert started.missing == []


BAD = {
    "another network": (
        lambda: models.resnet50().state_dict(),
        UsageError,
        "lacks .*% of this backbone: .*Set model.backbone, model.stem and views.size",
    ),
    "nothing": (lambda: {}, UsageError, "lacks 100%"),
    "several": (
        lambda: {
            who: dict(models.resnet18().state_dict().items()) for who in ("teacher", "student")
        },
        UsageError,
        "several networks that fit, teacher., student.; name one, .*#teacher.",
    ),
    "no number": (
        lambda: models.resnet18().state_dict() | {"bn1.weight": torch.full((64,), torch.nan)},
        DataError,
        "bn1.weight holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(tmp_path, case):
    make, kind, words = BAD[case]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(kind, match=words):
        start_from(str(tmp_path / "w.pt"), OfLearner(backbone()))


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    torch.save({"state_dict": Harmful()}, tmp_path / "w.pt")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Harmful()))
    for name in ("w.pt", "p.pkl"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            start_from(str(tmp_path / name), OfLearner(backbone()))
    assert "code was run" not in capsys.readouterr().out


DAMAGED = {
    "gone.pt": (None, DataError, "No such file"),
    "cut.safetensors": (b"\x10\0\0\0\0\0\0\0{", DataError, "no whole safetensors file"),
    "text.pt": (b"no weights", DataError, "cannot be read as weights"),
    "empty": ("folder", UsageError, "holds no model of a finished task"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name):
    content, kind, words = DAMAGED[name]
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=words) as raised:
        start_from(str(tmp_path / name), OfLearner(backbone()))
    assert str(tmp_path / name) in str(raised.value)


def test_torchvisions_names():
    with pytest.raises(UsageError, match="torchvision has no such weights"):
        start_from("torchvision:resnet19", OfLearner(backbone()))
    with pytest.raises(UsageError, match="torchvision has no such weights"):
        start_from("torchvision:ResNet18_Weights.NONE", OfLearner(backbone()))


def test_one_of_several_networks_is_named(tmp_path, given):
    """As MoCo's files have them: the query's and the slow copy of it."""
    other = models.resnet18()
    torch.save(
        {"encoder_q": given.state_dict(), "encoder_k": other.state_dict()}, tmp_path / "w.pt"
    )
    network = backbone()
    started = start_from(f"{tmp_path / 'w.pt'}#encoder_q.", OfLearner(network))
    assert torch.equal(network.network.conv1.weight, given.conv1.weight)
    assert len(started.left_over) == len(other.state_dict()) + 2


def test_a_tensor_beside_the_network_is_left_over(given):
    tensors = {f"module.{name}": t for name, t in given.state_dict().items()}
    _, started = match("f.pt", tensors | {"conv1.weight": torch.zeros(1)}, backbone())
    assert "conv1.weight" in started.left_over
