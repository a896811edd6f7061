"""Configurations: strict, all problems at once, bases, overrides."""

import os
import re
from pathlib import Path

import pytest
import yaml

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config, differences, flatten, is_silent, load, loading, validate
from kaizen_dist.learner.methods import method_class, method_names


def numbers_of(section, prefix=""):
    """Every key of a section, dotted, that holds a number."""
    found = []
    for name, field in section.model_fields.items():
        kinds = str(field.annotation)
        if hasattr(field.annotation, "model_fields"):
            found += numbers_of(field.annotation, f"{prefix}{name}.")
        elif re.match(r"<class '(int|float)'>|(int|float) \| None", kinds):
            found.append(prefix + name)
    return found


SETTINGS = [
    f"{name}/{key}" for name in method_names() for key in numbers_of(method_class(name).Settings)
]
MAY_BE_LARGE = {
    "classifier.weight",
    "classifier.logit_adjustment",
    "supervise.weight",
    "supervise.distill_weight",
    "distill.features_weight",
    "distill.classifier_weight",
    "optim.lr",
    "optim.classifier_lr",
    "optim.weight_decay",
    "optim.eta",
    "optim.warmup_start_lr",
    "optim.min_lr",
    "optim.clip_norm",
    "ssl_weight",
    "barlow_twins/off_diagonal",
    "barlow_twins/scale",
    "vicreg/invariance",
    "vicreg/variance",
    "vicreg/covariance",
}
"""Factors: as large as float32 holds them."""

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
        ("optim.warmup_heads=500", "optim.warmup_heads: 500 leaves nothing of train.epochs=500"),
        ("optim.warmup_heads=1", "optim.warmup_heads: heads warm up on a backbone"),
        ("optim.layer_decay=1.1", "optim.layer_decay"),
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


def test_bases_that_double_are_read_once_each(write, monkeypatch):
    """40 files, each of which names the next one twice: 2^40 readings, were each made anew."""
    read = []
    real = loading.read_yaml
    monkeypatch.setattr(
        loading, "read_yaml", lambda path, what: (read.append(path), real(path, what))[1]
    )
    last = loading.BASES_LIMIT - 1
    write("train: {seed: 4}\n", f"{last}.yaml")
    for number in range(last):
        write(f"base: [{number + 1}.yaml, {number + 1}.yaml]\n", f"{number}.yaml")
    assert load(write("base: 1.yaml\n", "0.yaml")).train.seed == 4
    assert len(read) == loading.BASES_LIMIT


def test_a_chain_of_bases_has_an_end(write):
    for number in range(400):
        write(f"base: [{number + 1}.yaml, {number + 1}.yaml]\n", f"{number}.yaml")
    with pytest.raises(UsageError, match=r"16\.yaml: a chain of more than 16 bases"):
        load(write("base: 1.yaml\n", "0.yaml"))


@pytest.mark.parametrize("base", ["pipe", "/dev/zero", "ring", "3", "null", "[a, 3]", "''"])
def test_a_base_is_a_regular_file_by_name(write, tmp_path, base):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(
        UsageError, match=r"cannot read the configuration|base is the name of a file"
    ):
        load(write(f"base: {base}\n"))


def test_an_override_of_one_section_leaves_its_alias_alone(write):
    """One mapping stands in both places of the file; only one of them is meant."""
    text = "train: &t {batch_size: 64}\nreplay: *t\n"
    config = load(write(text), ["replay.batch_size=16"])
    assert (config.train.batch_size, config.replay.batch_size) == (64, 16)


def test_a_section_over_a_value_of_a_base_is_an_error(write):
    write("train: 7\noptim: {lr: 1}\n", "b.yaml")
    for above in ("train: {seed: 3}", "optim: 3"):
        with pytest.raises(UsageError, match=r"c\.yaml: (train|optim) is a section here, a value"):
            load(write(f"base: b.yaml\n{above}\n"))


@pytest.mark.parametrize("key", ["a" + ".b" * 5000, "train.", ".epochs", "a.b.c.d.e"])
def test_a_key_that_cannot_be_one_is_refused(key):
    with pytest.raises(UsageError, match="no key is called so") as caught:
        load(None, [f"{key}=1"])
    assert len(str(caught.value)) < 300


def test_an_error_is_short_however_long_and_many_the_mistakes(write):
    many = "".join(f"key{n}: 1\n" for n in range(5000))
    with pytest.raises(UsageError, match=r"and 4,981 more") as caught:
        load(write(f"method: {'x' * 50_000}\n{many}"))
    assert len(str(caught.value)) < 100_000


@pytest.mark.parametrize("key", numbers_of(Config) + SETTINGS)
def test_every_number_has_bounds(key):
    """No key takes a number below zero, one beyond all sizes, or one that is none."""
    method, _, name = key.rpartition("/")
    large = "1" + "0" * (400 if key in MAY_BE_LARGE else 30)
    for value in ("-1", "-1.5", large, f"{large}.0", ".nan", ".inf", "-.inf"):
        given = [f"method={method}", f"ssl.{name}={value}"] if method else [f"{key}={value}"]
        with pytest.raises(UsageError, match=(name or key).replace(".", r"\.")):
            load(None, given)


@pytest.mark.parametrize(
    "override",
    [
        "train.threads=100000000",
        "stream.cache_gb=.inf",
        "views.crop_scale=[0.5, 500]",
        "views.crop_scale=[.nan, 1.0]",
        "views.crop_ratio=[0.5, 1000.0]",
        "views.std=[0.2, 0.0, 0.2]",
        "views.std=[0.2, .nan, 0.2]",
        "views.mean=[0.2, 0.2, 3.0]",
        "views.blur=[2.0, 0.0]",
        "views.solarise=[0.0, -1.0]",
        "views.size=1000000",
        "train.batch_size=100000000000",
        "parallel.timeout_seconds=1e30",
        'stream.cache_dir="a\\nb"',
        "stream.cache_dir=''",
        "ssl.tau_start=.nan",
    ],
)
def test_a_value_that_would_end_a_run_later_is_refused_now(override):
    with pytest.raises(UsageError, match=override.partition("=")[0].replace(".", r"\.")):
        load(None, [override])


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


def test_a_removed_option_is_read_where_it_is_off_and_refused_where_it_is_on(write):
    off = write(
        "classifier: {align_weights: false, hidden: 12}\n"
        "replay: {balance: false}\neval: {ema: 0.0}\n"
    )
    config = load(off)
    assert config.classifier.hidden == 12
    assert differences(config, validate({"classifier": {"hidden": 12}}, "here")) == []
    assert not {"align_weights", "balance", "ema"} & set(str(config.dump()).split("'"))
    for key, value in (
        ("classifier.align_weights", "true"),
        ("replay.balance", "true"),
        ("eval.ema", "0.9"),
        ("eval.ema", "on"),
    ):
        with pytest.raises(UsageError, match=rf"{key}: this option was removed.*commit 8379c46"):
            load(off, [f"{key}={value}"])


def test_the_digest_follows_meaning_only():
    config = validate({}, "here")
    same = validate({"log": {"every_steps": 3}, "views": {"workers": 7}}, "here")
    other = validate({"optim": {"lr": 0.7}}, "here")
    assert config.sha256 == same.sha256
    assert config.sha256 != other.sha256
    assert differences(same, config) == []
    assert differences(other, config) == ["optim.lr: 1.0 -> 0.7"]


def test_each_field_says_whether_it_changes_results():
    keys = flatten(validate({}, "here").dump())
    silent = {key for key in keys if is_silent(key)}
    assert {k for k in keys if k.startswith(("checkpoint.", "log.", "stream."))} <= silent
    assert {"views.backend", "train.threads", "eval.batch_size", "parallel.engine"} <= silent
    assert silent.isdisjoint({"views.size", "train.seed", "eval.knn_k", "parallel.precision"})
    assert len(silent) == 29
    assert not is_silent("no.such.key")
    assert not is_silent("train.threads_of_another")


def test_lanes_divide_both_batches():
    assert validate({}, "here").lanes == 32
    small = {"train": {"batch_size": 48}, "replay": {"batch_size": 32}}
    assert validate(small, "here").lanes == 16
