"""ONNX: another runtime, the same answers."""

import json

import onnxruntime
import pytest
import torch

from kaizen_dist.common.errors import UsageError
from kaizen_dist.models import onnx as onnx_module
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.views.eval_view import decode


@pytest.mark.parametrize("kind", ["cifar", pytest.param("vit", marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_same_probabilities_for_any_batch(
    trained, stream, odd_files, tmp_path, kind
):
    out = export(trained(kind).path, 0, tmp_path / "out", with_onnx=True)
    model = load_model(out)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    images = model.description.view.of([decode(path.read_bytes()) for path in odd_files])
    for size in (1, 2, 7):
        ours = model(images[:size])
        theirs = session.run(["probabilities", "features"], {"images": images[:size].numpy()})
        assert torch.allclose(torch.from_numpy(theirs[0]), ours[0], rtol=0, atol=1e-5)
        assert torch.allclose(torch.from_numpy(theirs[1]), ours[1], rtol=0, atol=1e-4)
        # Classes of later tasks have no output yet.
        assert theirs[0].shape[1] == len(stream.tasks[0].classes) == 5
    content = (out / "model.onnx").read_bytes()
    for told in (b"stack_trace", b"site-packages", b"kaizen_dist"):
        assert told not in content, "nothing of the machine that exported it"
    assert "model.onnx" in json.loads((out / "model.json").read_text())["files"]
    assert "`model.onnx` takes `images`" in (out / "README.md").read_text()


def test_without_the_packages_it_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "find_spec", lambda name: None if "script" in name else 1)
    with pytest.raises(UsageError, match="onnxscript not installed; `pip install onnx onnxscript"):
        export(trained("cifar").path, out=tmp_path / "out", with_onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_one_file_cannot_hold_lies_beside_it(trained, tmp_path, monkeypatch, odd_files):
    monkeypatch.setattr(onnx_module, "SINGLE_FILE_UP_TO", 0)
    out = export(trained("cifar").path, 0, tmp_path / "out", with_onnx=True)
    assert (out / "model.onnx").stat().st_size < 200_000 < (out / "model.onnx.data").stat().st_size
    assert "model.onnx.data" in json.loads((out / "model.json").read_text())["files"]
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    model = load_model(out)
    images = model.description.view.of([decode(odd_files[0].read_bytes())])
    (theirs,) = session.run(["probabilities"], {"images": images.numpy()})
    assert torch.allclose(torch.from_numpy(theirs), model(images)[0], rtol=0, atol=1e-5)
