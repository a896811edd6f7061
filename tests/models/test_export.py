"""An export: the run's own answers from plain files, whole or not there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.formatting import markdown_text
from kaizen_dist.config import load
from kaizen_dist.learner.learner import Learner
from kaizen_dist.models import export as export_module
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.models.predict import predict
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.eval_view import decode


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the CIFAR-stem run, to be damaged."""
    run = tmp_path / "run"
    shutil.copytree(trained("cifar").path, run, ignore=shutil.ignore_patterns("checkpoints"))
    return run


def results_of(run) -> dict:
    return json.loads((run / "results.json").read_text())


def rewrite_results(run, **changed) -> None:
    (run / "results.json").write_text(json.dumps(results_of(run) | changed))


def plain_views(model, files) -> torch.Tensor:
    return model.description.view.of([decode(path.read_bytes()) for path in files])


# ---- the same answers -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "vit"])
def test_probabilities_are_those_of_the_runs_own_evaluation(
    trained, stream, digit_files, odd_files, tmp_path, kind
):
    run = trained(kind)
    files = [path for path, _ in digit_files[0][:20]] + odd_files
    config = load(run.path / "config.yaml")
    images = open_backend(config.views).centre_views([path.read_bytes() for path in files])
    for task, state in enumerate(run.states):
        classes = stream.known_classes(task)
        learner = Learner(config, classes)
        kept = {n: t for n, t in state.items() if n.startswith(("backbone.", "classifier."))}
        missing, unexpected = learner.load_state_dict(kept, strict=False)
        assert not unexpected
        assert not [name for name in missing if name.startswith(("backbone.", "classifier."))]
        learner.eval()
        seen = sorted({c for info in stream.tasks[: task + 1] for c in info.classes})
        logits = learner.logits(images)
        hidden = [c for c in range(classes) if c not in seen]
        logits[:, hidden] = -torch.inf
        expected = logits.softmax(1)

        model = load_model(export(run.path, task, tmp_path / f"{task}"))
        probabilities, features = model(plain_views(model, files))
        assert torch.allclose(probabilities, expected, rtol=0, atol=1e-6)
        assert torch.allclose(features, learner.embed(images), rtol=0, atol=1e-5)
        answers = list(predict(model, files, top=99, batch_size=7, progress=False))
        for answer, row in zip(answers, expected.tolist(), strict=True):
            assert {name for name, _ in answer.ranked} == {stream.classes[c] for c in seen}
            for name, probability in answer.ranked:
                assert probability == pytest.approx(row[stream.classes.index(name)], abs=1e-6)


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "vit"])
def test_predictions_have_the_accuracy_that_the_run_measured(trained, digit_files, tmp_path, kind):
    run = trained(kind).path
    for task, row in enumerate(results_of(run)["accuracy"]):
        model = load_model(export(run, task, tmp_path / str(task)))
        for other, measured in enumerate(row[: task + 1]):
            files, names = zip(*digit_files[other], strict=True)
            answers = predict(model, files, top=1, progress=False)
            right = [a.ranked[0][0] == name for a, name in zip(answers, names, strict=True)]
            assert sum(right) / len(right) == pytest.approx(measured, abs=1e-6)


# ---- plain files ------------------------------------------------------------------------


def test_an_imagenet_stem_loads_into_torchvisions_own_model(trained, tmp_path):
    out = export(trained("imagenet").path, out=tmp_path / "out")
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    network.load_state_dict(load_file(out / "model.safetensors"))


def test_a_cifar_stem_loads_into_torchvisions_class(trained, tmp_path):
    out = export(trained("cifar").path, out=tmp_path / "out")
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.fc = nn.Identity()
    network.load_state_dict(load_file(out / "model.safetensors"))
    head = load_file(out / "classifier.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {
        "0.weight": (24, 512),
        "0.bias": (24,),
        "2.weight": (10, 24),
        "2.bias": (10,),
    }


def test_a_vit_loads_into_torchvisions_class(trained, tmp_path):
    out = export(trained("vit").path, out=tmp_path / "out")
    network = torchvision.models.VisionTransformer(8, 4, 12, 3, 192, 768)
    network.heads = nn.Identity()
    network.load_state_dict(load_file(out / "model.safetensors"))


def test_the_description_says_all_that_is_needed(trained, stream, tmp_path):
    run = trained("cifar").path
    about = json.loads((export(run, 0, tmp_path / "out") / "model.json").read_text())
    assert about["network"] == {
        "backbone": "resnet10",
        "stem": "cifar",
        "stem_padding": 1,
        "features": 512,
        "hidden": 24,
        "head": "mlp",
    }
    assert (about["view"]["shorter"], about["view"]["size"]) == (8, 8)
    assert about["view"]["mean"] == [0.485, 0.456, 0.406]
    assert about["classes"] == stream.classes[:5]
    assert about["seen"] == sorted(stream.tasks[0].classes)
    assert about["source"]["config_sha256"] == results_of(run)["config_sha256"]
    assert about["source"]["state_sha256"] is None
    last = json.loads((export(run, None, tmp_path / "last") / "model.json").read_text())
    assert last["seen"] == list(range(10))
    assert last["source"]["state_sha256"] == results_of(run)["state_sha256"]


def test_the_same_export_twice_is_the_same_bytes(trained, tmp_path):
    run = trained("cifar").path
    first, second = (export(run, 1, tmp_path / name) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["README.md", "classifier.safetensors", "model.json", "model.safetensors"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_run_without_a_classifier_gives_its_backbone(
    train, odd_files, tmp_path, monkeypatch, capsys
):
    off = ["classifier.enabled=false", "distill.classifier=false", "eval.knn=false"]
    run = train(tmp_path / "run", "model.backbone=resnet10", *off).path
    out = export(run)
    assert not (out / "classifier.safetensors").exists()
    card = (out / "README.md").read_text()
    assert "kaizen-dist predict" not in card
    assert "| FA, final accuracy | not measured |" in card
    assert run_here(code_of(card), out, monkeypatch, capsys) == [["torch.Size([1,", "512])"]]
    with pytest.raises(UsageError, match="no classifier"):
        list(predict(load_model(out), odd_files, progress=False))


# ---- the card ---------------------------------------------------------------------------


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def run_here(code: str, folder, monkeypatch, capsys) -> list[list[str]]:
    """The words of each line that code prints in a folder."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "README.md", "exec"), {})
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_cards_code_runs_as_written_without_this_package(trained, tmp_path):
    out = export(trained("imagenet").path, 0, tmp_path / "out")
    code = code_of((out / "README.md").read_text())
    code += "\nimport sys\nassert not [m for m in sys.modules if m.startswith('kaizen')]\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "vit"])
def test_the_cards_code_gives_the_same_answers(
    trained, odd_files, tmp_path, monkeypatch, capsys, kind
):
    out = export(trained(kind).path, 0, tmp_path / "out")
    code, blank = code_of((out / "README.md").read_text()), 'Image.new("RGB", (64, 48))'
    assert blank in code
    code = code.replace(blank, f'Image.open({str(odd_files[0])!r}).convert("RGB")')
    said = run_here(code, out, monkeypatch, capsys)
    (answer,) = predict(load_model(out), odd_files[:1], top=99, progress=False)
    assert {name: float(value) for value, name in said} == {
        name: pytest.approx(value, abs=2e-6) for name, value in answer.ranked
    }


def test_the_card_tells_what_was_measured_at_its_task(trained, tmp_path):
    run = trained("cifar").path
    found = results_of(run)
    cards = [(export(run, t, tmp_path / str(t)) / "README.md").read_text() for t in (0, 1)]
    first = found["accuracy"][0][0]
    assert f"| FA, final accuracy | {first:.3f} |" in cards[0]
    assert "| F, forgetting | not measured |" in cards[0]
    assert "| FT, forward transfer | not measured |" in cards[1]
    assert f"FA, final accuracy | {found['final_accuracy']:.3f} |" in cards[1]
    assert f"F, forgetting | {found['forgetting']:.3f} |".replace("-", "−") in cards[1]
    assert f"| 1 | {found['accuracy'][1][0]:.3f} | {found['knn'][1][0]:.3f} |" in cards[1]
    for card in cards:
        assert str(run) not in card
        assert found["stream"]["path"] not in card


def test_a_sources_folder_stays_private(copied, tmp_path):
    stream = results_of(copied)["stream"]
    for source, shown in (
        ("folder:/home/lovelace/birds", "folder:birds"),
        ("torchvision:CIFAR10:/home/lovelace/data", "torchvision:CIFAR10"),
    ):
        rewrite_results(copied, stream=stream | {"source": source})
        card = (export(copied, out=tmp_path / "out") / "README.md").read_text()
        assert f"From {shown}, " in card
        assert "lovelace" not in card


def test_names_do_nothing_in_a_card():
    assert markdown_text("a|b\n# <img>") == r"a\|b \# \<img\>"


# ---- what may go wrong ------------------------------------------------------------------


@pytest.mark.parametrize("task", [-1, 2])
def test_a_task_that_there_is_not(copied, task):
    with pytest.raises(UsageError, match=f"--task {task}: .* tasks 0 to 1"):
        export(copied, task)


def test_a_task_that_is_not_finished(copied):
    found = results_of(copied)
    rewrite_results(copied, finished=False, accuracy=found["accuracy"][:1], knn=found["knn"][:1])
    with pytest.raises(UsageError, match="--task 1: not finished yet, task 0 is"):
        export(copied, 1)
    assert export(copied).name == "task-00"
    rewrite_results(copied, accuracy=[], knn=[])
    with pytest.raises(UsageError, match="no task is finished yet"):
        export(copied)
    (copied / "results.json").unlink()
    with pytest.raises(UsageError, match="no task is finished yet"):
        export(copied)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"is no run: it holds no config\.yaml"):
        export(tmp_path)
    with pytest.raises(DataError, match="is no run"):
        export(tmp_path / "none")


def test_a_model_that_is_missing_or_damaged_is_named(copied):
    path = copied / "models" / "task-01.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"task-01\.safetensors: not a whole model file"):
        export(copied)
    path.unlink()
    with pytest.raises(DataError, match=r"task-01\.safetensors: missing"):
        export(copied)
    assert not (copied / "export").exists()


def test_a_model_of_another_configuration_is_refused(copied):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("resnet10", "resnet14"))
    with pytest.raises(DataError, match=r"task-01\.safetensors does not fit .*config\.yaml"):
        export(copied)
    assert not list((copied / "export").iterdir())


def test_other_things_are_never_replaced(trained, tmp_path, monkeypatch):
    run = trained("cifar").path
    (tmp_path / "thesis.tex").write_text("precious")
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, Path(), tmp_path / "thesis.tex"):
        with pytest.raises(UsageError, match="name a"):
            export(run, out=out)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_is_replaced_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    run, out = trained("cifar").path, tmp_path / "out"

    def fail(*_):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "model_card", fail)
        with pytest.raises(RuntimeError):
            export(run, 0, out)
        assert not list(tmp_path.iterdir())
    export(run, 0, out)
    (out / "README.md").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "model_card", fail)
        with pytest.raises(RuntimeError):
            export(run, 1, out)
    assert (out / "README.md").read_text() == "mine"
    # What a killed export leaves behind does not stand in the way of the next.
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "model.json").write_text("half")
    export(run, 1, out)
    assert load_model(out).description.task == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
