"""Options beyond the paper in a whole run: resumed they end bit for bit the same."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.config import validate
from kaizen_dist.engine import engine_class
from kaizen_dist.errors import UsageError
from kaizen_dist.evaluation.exam import examine
from kaizen_dist.stream.prepare import prepare

PLUS = [
    "classifier.logit_adjustment=1.0",
    "classifier.align_weights=true",
    "replay.balance=true",
    "replay.select=herding",
    "replay.fraction=0.02",
    "eval.ncm=true",
    "eval.ema=0.9",
]
QUICK = [
    "train.max_steps=3",
    "train.threads=1",
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
def whole(tmp_path_factory, configs, stream) -> Path:
    """A run that was never interrupted, with all of its checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(configs / "digits.yaml", stream, run, *PLUS)
    return run


def test_the_nearest_class_mean_is_measured_beside_the_classifier(whole):
    rows = json.loads((whole / "results.json").read_text())["ncm"]
    assert [len(row) for row in rows] == [1, 2]
    assert min(rows[-1]) > 0.5, "even hardly trained features tell digits apart"


@pytest.mark.parametrize("left", ["t01-s000003", "t01-s000001"])
def test_a_run_with_all_of_them_goes_on_bit_for_bit(tmp_path, configs, stream, whole, left):
    """From within a task, and from its last step, before weights are aligned and means taken."""
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


def test_what_is_deployed_is_what_was_measured(whole):
    """The model beside the run is the average: examined, it answers as the run's own evaluation."""
    results = json.loads((whole / "results.json").read_text())
    for task in (0, 1):
        found = examine(whole, task, "classifier")
        for t, accuracy in found.tasks.items():
            assert accuracy == pytest.approx(results["accuracy"][task][t])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("classifier", "align_weights", True),
        ("eval", "ema", 0.9),
        ("parallel", "side_stream", True),
    ],
)
def test_weights_that_are_cut_over_ranks_are_refused(section, key, value):
    sections: dict = {"parallel": {"engine": "fsdp"}}
    sections.setdefault(section, {})[key] = value
    config = validate(sections, "the test")
    with pytest.raises(UsageError, match=rf"{section}\.{key}.*use ddp"):
        engine_class("fsdp").check(config, 1)
