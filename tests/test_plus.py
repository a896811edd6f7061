"""Options beyond the paper in a whole run: resumed they end bit for bit the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import load, validate
from kaizen_dist.engine import engine_class
from kaizen_dist.models.evaluate import evaluate
from kaizen_dist.models.export import export
from kaizen_dist.models.network import load_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.views.bad_samples import decode_row
from kaizen_dist.views.eval_view import EvalView

PLUS = [
    "classifier.logit_adjustment=1.0",
    "replay.select=herding",
    "replay.fraction=0.02",
    "eval.ncm=true",
    "eval.oracle=true",
    "eval.shrinkage=null",
    "supervise={weight: 1.0, hidden: 16, dim: 8}",
]
QUICK = [
    "train.max_steps=3",
    "train.threads=1",
    "model.backbone=tiny_backbone:Tiny",
    "ssl={hidden: 16, dim: 8, predictor_hidden: 16}",
    "eval.forward_transfer=false",
    "eval.knn=false",
    "views.backend=torch",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=100",
]


def train(config: Path, stream: Path, out: Path, *more: str) -> dict:
    arguments = ["train", config, "--stream", stream, "--out", out, *QUICK, *more]
    CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    """The digits in two tasks."""
    folder = tmp_path_factory.mktemp("streams") / "two"
    prepare("digits", folder, tasks=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def whole(shared_folder, configs, stream) -> Path:
    """A run that was never interrupted, with all of its checkpoints."""
    run = shared_folder / "whole"
    train(configs / "digits.yaml", stream, run, *PLUS)
    return run


def test_the_nearest_class_mean_is_measured_beside_the_classifier(whole):
    rows = json.loads((whole / "results.json").read_text())["ncm"]
    assert [len(row) for row in rows] == [1, 2]
    assert min(rows[-1]) > 0.5, "even hardly trained features tell digits apart"


@pytest.mark.parametrize("left", ["t01-s000003", "t01-s000001"])
def test_a_run_with_all_of_them_goes_on_bit_for_bit(tmp_path, configs, stream, whole, left):
    """From within a task, and from its last step, before means are taken."""
    shutil.copytree(whole, tmp_path / "again")
    newer = [p for p in (tmp_path / "again/checkpoints").iterdir() if p.name > left]
    assert len(newer) > 0
    for folder in newer:
        shutil.rmtree(folder)
    before = json.loads((whole / "results.json").read_text())
    again = train(configs / "digits.yaml", stream, tmp_path / "again", *PLUS)
    assert again["state_sha256"] == before["state_sha256"]
    assert again["accuracy"] == before["accuracy"]
    assert again["ncm"] == before["ncm"]


@pytest.fixture(scope="module")
def by_means(shared_folder, configs, stream) -> Path:
    """A run that the nearest class mean answers for."""
    run = shared_folder / "means"
    train(configs / "digits.yaml", stream, run, "eval.head=ncm", "replay.fraction=0.02")
    return run


def test_the_nearest_class_mean_is_exported(by_means):
    """Its folder predicts what the run measured, without the run."""
    results = json.loads((by_means / "results.json").read_text())
    own = Stream.open(results["stream"]["path"])
    model = load_model(export(by_means))
    views = load(by_means / "config.yaml").views
    for task in (0, 1):
        split = own.split(task, "val")
        images = EvalView.of_size(views.size, views.mean, views.std).of(
            [decode_row(split, row) for row in range(len(split))]
        )
        answers = model(images)[0].argmax(1).numpy()
        measured = results["accuracy"][-1][task]
        assert (answers == split.labels).mean() == pytest.approx(measured)
    # Its card's own code, without this package, gives numbers of the same kind.
    card = (by_means / "export/task-01/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=by_means / "export/task-01",
        capture_output=True,
        text=True,
        check=True,
    )
    shares = [float(line.split()[0]) for line in done.stdout.splitlines()]
    assert len(shares) == 10
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_run_that_means_answer_for_goes_on_bit_for_bit(tmp_path, configs, stream, by_means):
    shutil.copytree(by_means, tmp_path / "again")
    for folder in (tmp_path / "again/checkpoints").iterdir():
        if folder.name > "t01-s000001":
            shutil.rmtree(folder)
    before = json.loads((by_means / "results.json").read_text())
    more = ("eval.head=ncm", "replay.fraction=0.02")
    again = train(configs / "digits.yaml", stream, tmp_path / "again", *more)
    assert again["state_sha256"] == before["state_sha256"]
    assert again["accuracy"] == before["accuracy"]


@pytest.mark.parametrize("kind", ["whole", "by_means"])
def test_what_is_deployed_is_what_was_measured(request, kind):
    """The model beside the run: examined, it answers as the run's own evaluation."""
    whole = request.getfixturevalue(kind)
    results = json.loads((whole / "results.json").read_text())
    for task in (0, 1):
        found = evaluate(whole, task, "classifier")
        for t, accuracy in found.tasks.items():
            assert accuracy == pytest.approx(results["accuracy"][task][t])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("parallel", "side_stream", True),
        ("parallel", "cuda_graphs", True),
    ],
)
def test_weights_that_are_cut_over_ranks_are_refused(section, key, value):
    sections: dict = {"parallel": {"engine": "fsdp"}}
    sections.setdefault(section, {})[key] = value
    config = validate(sections, "the test")
    with pytest.raises(UsageError, match=rf"{section}\.{key}.*use ddp"):
        engine_class("fsdp").check(config, 1)
