"""`inspect`: the same step for every world size, as text, JSON and a picture."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import load
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.training import inspect


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
    step = inspect.step_of(load(config), digits, 2, 0, 0, world_size=4)
    past = {c for t in (0, 1) for c in digits.tasks[t].classes}
    assert set(step.labels[step.replay].tolist()) <= past


def test_the_picture_shows_both_views(digits, configs, tmp_path):
    path = tmp_path / "views.png"
    done = run(digits.root, "--config", configs / "digits.yaml", "--task", 1, "--png", path)
    assert done.exit_code == 0
    picture = np.asarray(Image.open(path))
    assert picture.shape[2] == 3
    assert picture.std() > 20


@pytest.mark.parametrize(("images", "batch"), [(2, 1), (7, 4), (40, 32)])
def test_its_defaults_fit_a_small_stream(tmp_path, images, batch):
    for label in "ab":
        (tmp_path / "source" / "train" / label).mkdir(parents=True)
        (tmp_path / "source" / "val" / label).mkdir(parents=True)
        for number in range(images):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), "uint8")
            part = "train" if number else "val"
            Image.fromarray(pixels).save(tmp_path / "source" / part / label / f"{number}.png")
    source = f"folder:{tmp_path / 'source'}"
    prepare(source, tmp_path / "stream", tasks=2, progress=False)
    shown = run(tmp_path / "stream", "--json")
    assert shown.exit_code == 0, shown.exception
    assert len(json.loads(shown.stdout)["ids"]) == batch
    assert run(tmp_path / "stream", "--lanes", 1, "--json").exit_code == 0


def test_a_name_in_any_script_is_drawn_without_a_warning(digits, tmp_path):
    names = ["\u732b\u72ac", "\u0e44\u0e17\u0e22", "a$\\frac", "tab\tline\nend", "\U0001f408"]
    step = inspect.step_of(load(None, ["replay.fraction=0"]), digits, 0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = inspect.draw(step, names * 2)
        plain = inspect.draw(step, ["\u732b"] * 10)
        other = inspect.draw(step, ["\u72ac"] * 10)
    assert drawn.size == plain.size
    assert plain.tobytes() != other.tobytes(), "boxes are all alike"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", 9), "--task 9"),
        (("--step", 99, "--batch", 64), "--step 99"),
        (("--batch", 64, "--world", 7), "world sizes that fit"),
        (("--batch", 512), "--batch 512: task 0 of"),
        (("--batch", 7, "--lanes", 2), "--batch 7: no multiple of --lanes 2"),
    ],
)
def test_wrong_places_are_refused(digits, options, said):
    error = run(digits.root, *options).exception
    assert isinstance(error, UsageError)
    assert said in str(error)
