"""Exports of timm's backbones: plain timm loads them, and both give the same features."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import code_of

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import file_sha256
from kaizen_dist.learner.backbone import build_backbone
from kaizen_dist.models.description import Description, Network
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.models.predict import predict
from kaizen_dist.views.eval_view import EvalView, decode

timm = pytest.importorskip("timm")

SWIN, DINOV3 = "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize(
    ("name", "size"), [("test_byobnet", {}), ("test_vit", {"img_size": 32}), ("test_convnext", {})]
)
def test_plain_timm_gives_the_same_features(train, odd_files, tmp_path, name, size):
    run = train(
        tmp_path / "run",
        f"model={{backbone: timm/{name}, stem: auto}}",
        "views.size=32",
        "eval.knn=false",
    ).path
    before = torch.random.get_rng_state()
    out = export(run, 0)
    model = load_model(out)
    assert torch.equal(torch.random.get_rng_state(), before)
    images = model.description.view.of([decode(path.read_bytes()) for path in odd_files])
    _, features = model(images)

    # The lines of docs/deploy.md.
    network = timm.create_model(name, num_classes=0, **size)
    network.load_state_dict(load_file(out / "model.safetensors"))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), features, rtol=0, atol=1e-5)

    code = code_of((out / "README.md").read_text())
    code = code.replace('Image.new("RGB", (64, 48))', f"Image.open({str(odd_files[0])!r})")
    code += "\nimport sys\nassert not [m for m in sys.modules if m.startswith('kaizen')]\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split()[::-1] for line in done.stdout.splitlines())
    (answer,) = predict(model, odd_files[:1], top=99, progress=False)
    assert {name: float(value) for name, value in said.items()} == {
        name: pytest.approx(value, abs=2e-6) for name, value in answer.ranked
    }


@pytest.mark.parametrize("name", [SWIN, DINOV3])
def test_tables_that_no_file_holds_are_made_again(tmp_path, name):
    """As Swin's positions within a window, and DINOv3's frequencies."""
    network = Network(f"timm/{name}", "auto", 1, features=768 if name == SWIN else 384)
    backbone = build_backbone(network, 32).eval()
    state = backbone.network.state_dict()
    assert {n for n, _ in backbone.network.named_buffers()} - state.keys()
    save_file(state, tmp_path / "model.safetensors")
    files = {"model.safetensors": file_sha256(tmp_path / "model.safetensors")}
    about = Description(
        network, EvalView.of_size(32, (0.5,) * 3, (0.5,) * 3), ("a",), (0,), 0, 1, {}, files
    )
    (tmp_path / "model.json").write_text(about.to_json())
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32))).float()
    loaded = load_model(tmp_path).backbone
    torch.testing.assert_close(loaded(images), backbone(images), rtol=0, atol=1e-6)


def test_an_export_cannot_name_what_is_not_in_timms_registry(tmp_path):
    network = Network("timm/hf-hub:someone/model", "auto", 1, features=8)
    about = Description(
        network, EvalView.of_size(32, (0.5,) * 3, (0.5,) * 3), ("a",), (0,), 0, 1, {}, {}
    )
    (tmp_path / "model.json").write_text(about.to_json())
    with pytest.raises(DataError, match="no model 'hf-hub:someone/model'"):
        load_model(tmp_path)
