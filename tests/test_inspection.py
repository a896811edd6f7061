"""`inspect`: the same step for every world size, as text, JSON and a picture."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist import inspection
from kaizen_dist.cli import app
from kaizen_dist.config import load
from kaizen_dist.errors import UsageError


def run(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=True)


def test_every_world_size_prints_the_same_step(digits):
    place = ("--task", 1, "--epoch", 2, "--step", 3, "--batch", 64, "--json")
    answers = [json.loads(run(digits.root, *place, "--world", w).stdout) for w in (1, 2, 4, 8)]
    assert all(answer == answers[0] for answer in answers)
    ids = answers[0]["ids"]
    assert len(ids) == len(set(ids)) == 64
    assert set(ids) <= set(digits.split(1, "train").ids.tolist())


def test_every_argument_matters(digits):
    base = {"task": 1, "epoch": 0, "step": 0, "batch": 64, "seed": 0}
    changes = [{}, {"task": 2}, {"epoch": 1}, {"step": 1}, {"batch": 32}, {"seed": 1}]
    digests = set()
    for change in changes:
        options = [f"--{name}={value}" for name, value in (base | change).items()]
        digests.add(json.loads(run(digits.root, *options, "--json").stdout)["digest"])
    assert len(digests) == len(changes)


def test_with_a_configuration_replay_is_shown(digits, configs):
    config = configs / "digits.yaml"
    shown = run(digits.root, "--config", config, "--task", 2, "--world", 4)
    assert "64 samples" not in shown.stdout
    assert "96 samples (32 replayed, marked r) in 32 lanes" in shown.stdout
    step = inspection.step_of(load(config), digits, 2, 0, 0, 4)
    past = {c for t in (0, 1) for c in digits.tasks[t].classes}
    assert set(step.labels[step.replay].tolist()) <= past


def test_the_picture_shows_both_views(digits, configs, tmp_path):
    path = tmp_path / "views.png"
    done = run(digits.root, "--config", configs / "digits.yaml", "--task", 1, "--png", path)
    assert done.exit_code == 0
    picture = np.asarray(Image.open(path))
    assert picture.shape[2] == 3
    assert picture.std() > 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", 9), "--task 9"),
        (("--step", 99, "--batch", 64), "--step 99"),
        (("--batch", 64, "--world", 7), "world sizes that fit"),
        (("--batch", 512), "too few for one step"),
    ],
)
def test_wrong_places_are_refused(digits, options, said):
    error = run(digits.root, *options).exception
    assert isinstance(error, UsageError)
    assert said in str(error)
