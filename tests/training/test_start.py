"""Runs that begin with given weights: alone, on two ranks, over a kill, and what is refused."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from killing import MOMENTS, Setting, outcome, run_ranks
from safetensors.torch import load_file, save_file

from kaizen_dist.config.learning import ModelConfig
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.models.export import export
from kaizen_dist.stream.prepare import prepare

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s") / "s"
    return prepare("digits", folder, classes_per_task=[["0", "1"], ["2"]], progress=False).root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(3)
    network = build_backbone(ModelConfig(backbone="resnet10", stem="cifar"), 8).network
    file = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_file({f"module.{name}": t for name, t in network.state_dict().items()}, file)
    return file


def arguments(configs, folder, stream, run, *overrides):
    setting = Setting("byol", "torch", 1)
    setting.write(folder / "config.yaml", configs)
    given = setting.arguments(folder / "config.yaml", stream, run)
    return [*given, "model.backbone=resnet10", "checkpoint.every_steps=1", *overrides]


def kaizen(given, code=0):
    command = [sys.executable, "-m", "kaizen_dist", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_no_step_leaves_the_weights_as_they_were(tmp_path, configs, stream, weights):
    """A learning rate of next to nothing: the model of the first task is what was given."""
    slow = ("optim.lr=1e-30", "optim.warmup_start_lr=0.0", "optim.weight_decay=0.0")
    run = tmp_path / "run"
    said = kaizen(
        arguments(configs, tmp_path, stream, run, f"model.init={weights}", *slow, "--until", "1")
    )
    assert "the backbone starts from" in said
    made = load_file(export(run, 0, tmp_path / "e") / "model.safetensors")
    for name, tensor in load_file(weights).items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(made[name.removeprefix("module.")], tensor)
    started = json.loads((run / "results.json").read_text())["started_from"]
    assert (started["missing"], started["left_over"]) == ([], [])


def test_while_heads_warm_up_the_backbone_is_what_was_given(tmp_path, configs, stream, weights):
    """To the last bit, with its batch statistics, in a task that ends before the warm-up does."""
    warm = (f"model.init={weights}", "train.epochs=9", "optim.warmup_heads=8", "--until", "1")
    run = tmp_path / "run"
    kaizen(arguments(configs, tmp_path, stream, run, *warm))
    made = load_file(export(run, 0, tmp_path / "e") / "model.safetensors")
    for name, tensor in load_file(weights).items():
        assert torch.equal(made[name.removeprefix("module.")], tensor), name


@pytest.mark.parametrize(("world", "warm"), [(1, 0), (2, 0), (2, 8)])
def test_a_killed_run_goes_on_without_the_file(tmp_path, configs, stream, weights, world, warm):
    given = tmp_path / "w.safetensors"
    given.write_bytes(weights.read_bytes())
    more = (f"model.init={given}", "train.epochs=9", f"optim.warmup_heads={warm}")
    whole, killed = (
        arguments(configs, tmp_path, stream, tmp_path / name, *more) for name in ("whole", "killed")
    )
    assert run_ranks(whole, world, {}) == [0] * world
    moment = f"{MOMENTS['in a step'][0]} after 4"
    assert -signal.SIGKILL in run_ranks(killed, world, {0: moment})
    given.unlink()
    assert run_ranks(killed, world, {}) == [0] * world
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_from_a_run_and_from_its_export(tmp_path, configs, stream):
    first = tmp_path / "first"
    kaizen(arguments(configs, tmp_path, stream, first))
    exported = export(first, 1, tmp_path / "e")
    runs = []
    for name, source in (("a", first), ("b", exported), ("c", exported / "model.safetensors")):
        kaizen(arguments(configs, tmp_path, stream, tmp_path / name, f"model.init={source}"))
        runs.append(outcome(tmp_path / name))
    assert runs[0] == runs[1] == runs[2]
    assert runs[0]["state_sha256"] != outcome(first)["state_sha256"]


def test_nothing_is_written_where_weights_do_not_fit(tmp_path, configs, stream, weights):
    run = tmp_path / "run"
    given = arguments(configs, tmp_path, stream, run, f"model.init={weights}")
    said = kaizen([*given, "model.backbone=resnet14"], 2)
    assert "model.init: " in said
    assert "lacks" in said
    assert not (run / "config.yaml").exists()
    assert "cannot be read" in kaizen([*given, "model.init=gone.pt"], 3)
    assert not (run / "config.yaml").exists()
