"""Configurations: strict, all problems at once, bases, overrides."""

from pathlib import Path

import pytest
import yaml

from kaizen_dist.config import differences, load, validate
from kaizen_dist.errors import UsageError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "c.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path):
    others = ("digits.yaml", "digits_plus.yaml", "digits_vit.yaml")
    others += ("cifar10_laptop.yaml", "cifar10_laptop_plus.yaml", "tin100_laptop.yaml")
    assert load(path).method in path.name or path.name in others


def test_all_problems_are_told_at_once_with_the_nearest_names(write):
    path = write("train: {epocs: 3, batch_size: many}\ntrian: {seed: 1}\nmethod: bjol\n")
    with pytest.raises(UsageError) as caught:
        load(path, ["ssl.dim=3", "lr=0.1"])
    message = str(caught.value)
    assert str(path) in message
    for expected in (
        "train.epocs: unknown key; did you mean train.epochs?",
        "train.batch_size: Input should be a valid integer, got 'many'",
        "trian: unknown key; did you mean train?",
        "lr: unknown key; did you mean optim.lr?",
        "'bjol' is unknown; did you mean byol?",
    ):
        assert expected in message, message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs='3'", "train.epochs"),
        ("replay.fraction=2", "replay.fraction"),
        ("train.lanes=7", "train.batch_size"),
        ("optim.warmup_epochs=500", "optim.warmup_epochs"),
        ("classifier.enabled=false", "distill.classifier"),
        ("model.frozen_patch=true", "model.frozen_patch: model.backbone=resnet18 has no patches"),
        ("views.crop_scale=[0.9,0.1]", "views.crop_scale"),
        ("ssl.tau_start=7", "ssl.tau_start"),
        ("ssl.nonsense=7", "ssl.nonsense"),
        ("train.epochs", "section.key=value"),
        ("method.x=1", "method"),
        ("train.epochs=[", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named(write, override, named):
    with pytest.raises(UsageError, match=named.replace(".", r"\.")):
        load(write("method: byol\n"), [override])


def test_bases_are_merged_in_order_and_overridden(write):
    write("train: {epochs: 7, batch_size: 64}\noptim: {lr: 0.5}\n", "a.yaml")
    write("train: {epochs: 8}\n", "b.yaml")
    path = write("base: [a.yaml, b.yaml]\noptim: {momentum: 0.8}\n", "c.yaml")
    config = load(path, ["optim.warmup_epochs=1"])
    assert (config.train.epochs, config.train.batch_size) == (8, 64)
    assert (config.optim.lr, config.optim.momentum) == (0.5, 0.8)


def test_a_circle_of_bases_is_an_error(write):
    write("base: b.yaml\n", "a.yaml")
    with pytest.raises(UsageError, match="leads back"):
        load(write("base: a.yaml\n", "b.yaml"))


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "'text'\n"])
def test_a_file_that_is_no_mapping_is_an_error(write, text):
    with pytest.raises(UsageError, match=r"c\.yaml"):
        load(write(text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")


def test_numbers_in_exponent_form_are_numbers(write):
    assert load(write("optim: {weight_decay: 1e-5}\n")).optim.weight_decay == 1e-5


def test_the_resolved_configuration_reads_back_to_itself(write):
    config = load(CONFIGS[0], ["train.seed=3"])
    again = load(write(config.to_yaml()))
    assert again == config
    assert again.sha256 == config.sha256
    assert yaml.safe_load(config.to_yaml())["ssl"], "the method's settings are resolved as well"


def test_a_key_that_came_later_makes_no_other_run_of_an_old_one():
    now = validate({"model": {"backbone": "vit_s_16"}}, "here")
    then = now.dump()
    del then["model"]["frozen_patch"]
    assert differences(now, validate(then, "a checkpoint")) == []
    frozen = validate({"model": {"backbone": "vit_s_16", "frozen_patch": True}}, "here")
    assert differences(frozen, now) == ["model.frozen_patch: False -> True"]


def test_the_digest_follows_meaning_only():
    config = validate({}, "here")
    same = validate({"log": {"every_steps": 3}, "views": {"workers": 7}}, "here")
    other = validate({"optim": {"lr": 0.7}}, "here")
    assert config.sha256 == same.sha256
    assert config.sha256 != other.sha256
    assert differences(same, config) == []
    assert differences(other, config) == ["optim.lr: 1.0 -> 0.7"]


def test_lanes_divide_both_batches():
    assert validate({}, "here").lanes == 32
    small = {"train": {"batch_size": 48}, "replay": {"batch_size": 32}}
    assert validate(small, "here").lanes == 16
