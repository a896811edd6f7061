"""Exports that somebody else has made: refused by name, or meaning what they say.

model.json means what it says if every value of the description is the file's; weights do, if the
model's are those of the file, and no answer is anything but a probability.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import CASES, mutations, survive
from PIL import Image
from safetensors.torch import load, save
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.learner.heads import mlp
from kaizen_dist.models.description import FILE, Description, Network, read_description
from kaizen_dist.models.network import BACKBONE, CLASSIFIER, load_model
from kaizen_dist.runs.saved_models import read_model, write_model
from kaizen_dist.views.eval_view import EvalView

FEW = 60
MANY = [FEW, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
NETWORK = Network("vit_n_4", "auto", 1, 96, 8)


def weights() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    backbone = build_backbone(NETWORK, 8).network.state_dict()
    return {BACKBONE: backbone, CLASSIFIER: mlp(96, 8, 3, batch_norm=False).state_dict()}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    """An export of these weights, whose model.json knows their sums."""
    folder.mkdir(exist_ok=True)
    about = Description(
        network=NETWORK,
        view=EvalView(9, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        classes=("a", "b", "c"),
        seen=(0, 2),
        task=0,
        tasks=2,
        source={"config_sha256": "0" * 64, "state_sha256": None},
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / FILE).write_text(about.to_json())
    return folder


@pytest.fixture
def export(tmp_path) -> Path:
    return lay(tmp_path / "export", {name: save(state) for name, state in weights().items()})


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "i.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), "uint8")).save(path)
    return path


@pytest.mark.parametrize("count", MANY)
def test_a_damaged_description_is_refused_or_means_what_it_says(export, count):
    accepted = 0
    for what, data in mutations((export / FILE).read_bytes(), count):
        (export / FILE).write_bytes(data)
        about = survive(lambda: read_description(export))
        if not isinstance(about, KaizenError):
            accepted += 1
            assert says(json.loads(about.to_json()), json.loads(data)), what
    assert 0 < accepted < count


def says(ours, theirs) -> bool:
    """Whether every value of ours stands in theirs, which may leave out what is new."""
    if isinstance(ours, dict):
        theirs = {"head": "mlp", "hidden": None, "upright": False} | theirs
        return all(key in theirs and says(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, float):
        return type(theirs) in (int, float) and ours == theirs
    return ours == (theirs if type(theirs) in (list, type(ours)) else None)


@pytest.mark.parametrize("count", MANY)
def test_a_damaged_header_of_weights_is_refused_or_means_what_it_says(tmp_path, count):
    """With its sum in model.json, as somebody who means it would have it."""
    whole = {name: save(state) for name, state in weights().items()}
    length = int.from_bytes(whole[CLASSIFIER][:8], "little")
    header, rest = whole[CLASSIFIER][8 : 8 + length], whole[CLASSIFIER][8 + length :]
    views = torch.randn(2, 3, 8, 8)
    for number, (what, data) in enumerate(mutations(header, count)):
        size = len(data) if random.Random(number).random() < 0.9 else 2**60
        damaged = size.to_bytes(8, "little") + data + rest
        folder = lay(tmp_path / "x", whole | {CLASSIFIER: damaged})
        model = survive(lambda folder=folder: load_model(folder))
        if not isinstance(model, KaizenError):
            for name, tensor in model.classifier.state_dict().items():
                assert torch.equal(tensor, load(damaged)[name]), what
            assert model(views)[0].sum(1).allclose(torch.ones(2)), what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.bfloat16(), "bfloat16"),
        (lambda t: t.double(), "float64"),
        (lambda t: t * float("nan"), "not finite"),
        (lambda t: t * float("inf"), "not finite"),
        (lambda t: torch.cat([t, t]), "size mismatch"),
        (lambda t: t.long(), "int64"),
    ],
)
@pytest.mark.parametrize("name", [BACKBONE, CLASSIFIER])
def test_weights_that_are_none_are_refused_by_name(tmp_path, name, change, said):
    states = weights()
    last = list(states[name])[-1]
    states[name][last] = change(states[name][last])
    folder = lay(tmp_path / "x", {name: save(state) for name, state in states.items()})
    with pytest.raises(DataError, match=f"(?s){last}.*{said}|{said}.*{last}"):
        load_model(folder)


def test_an_answer_that_is_no_probability_is_an_error(tmp_path, image):
    """Weights that are finite, and whose products are not."""
    states = weights()
    for tensor in states[CLASSIFIER].values():
        tensor.fill_(3e38)
    folder = lay(tmp_path / "x", {name: save(state) for name, state in states.items()})
    done = CliRunner().invoke(app, ["predict", str(folder), str(image), "--json"])
    assert isinstance(done.exception, DataError)
    assert "NaN" in str(done.exception)
    assert done.stdout == ""


@pytest.mark.parametrize("name", [FILE, BACKBONE, CLASSIFIER])
def test_only_regular_files_of_a_fitting_size_are_read(export, name):
    path = export / name
    path.unlink()
    os.mkfifo(path)
    assert isinstance(survive(lambda: load_model(export)), DataError)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert isinstance(survive(lambda: load_model(export)), DataError)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    error = survive(lambda: load_model(export))
    assert isinstance(error, DataError)
    assert name in str(error)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "format_version", True),
        ("network", "features", 97),
        ("network", "hidden", 10**12),
        ("network", "stem_padding", 500),
        ("view", "size", 100_000),
        ("view", "mean", [0.5, 0.5, float("nan")]),
        ("view", "std", [0.2, 0.2, float("inf")]),
        ("view", "std", [0.2, 0.2, 1e-30]),
        ("view", "std", [0.2, 0.2, 10**400]),
        ("view", "std", [True, True, True]),
        (None, "classes", ["a", "a", "b"]),
        (None, "seen", [0, 0, 2]),
        (None, "task", 2),
        (None, "task", -1),
        (None, "tasks", 10**30),
        (None, "source", {"config_sha256": ["x"]}),
        (None, "files", {BACKBONE: None}),
    ],
)
def test_a_value_beyond_its_bounds_is_refused_by_name(export, section, key, value):
    content = json.loads((export / FILE).read_text())
    (content[section] if section else content)[key] = value
    (export / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match=key):
        load_model(export)


def test_a_runs_model_is_read_without_trust(tmp_path, digits):
    state = {f"backbone.network.{n}": t for n, t in weights()[BACKBONE].items()}
    path = write_model(tmp_path, 0, state, digits, digits.num_classes)
    whole = path.read_bytes()
    assert read_model(tmp_path, 0).classes == tuple(digits.classes)
    length = int.from_bytes(whole[:8], "little")
    for _, data in mutations(whole[8 : 8 + length], FEW):
        path.write_bytes(len(data).to_bytes(8, "little") + data + whole[8 + length :])
        survive(lambda: read_model(tmp_path, 0))
    path.unlink()
    os.mkfifo(path)
    assert isinstance(survive(lambda: read_model(tmp_path, 0)), DataError)


def test_a_link_in_a_run_leads_no_export_elsewhere(trained, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(trained("cifar").path, run)
    other.mkdir()
    (other / FILE).write_text("{}")
    (run / "export").symlink_to(tmp_path)
    done = CliRunner().invoke(app, ["export", str(run)])
    assert "is a link" in str(done.exception)
    (run / "export").unlink()
    (run / "export").mkdir()
    (run / "export" / "task-01").symlink_to(other)
    done = CliRunner().invoke(app, ["export", str(run)])
    assert "is a link" in str(done.exception)
    assert [path.name for path in other.iterdir()] == [FILE]
