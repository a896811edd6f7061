"""Damaged configurations: refused, or meaning what they say, and never anything else.

A file means what it says if every value in it is the configuration's own, and every value of its
base that it does not name.
"""

import math
from pathlib import Path

import pytest
import yaml
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.config import flatten, load

BASE = Path(__file__).parents[2] / "configs" / "digits.yaml"
WHOLE = load(BASE, ["train.seed=3", "classifier.logit_adjustment=0.5"]).to_yaml()
FEW = 20


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_damaged_configuration_is_refused_or_means_what_it_says(tmp_path, count):
    path = tmp_path / "c.yaml"
    accepted = 0
    for what, data in mutations(WHOLE.encode(), count):
        path.write_bytes(data)
        config = survive(lambda: load(path))
        if not isinstance(config, KaizenError):
            accepted += 1
            assert means(config, _flat(data)), what
    assert 0 < accepted < count


@pytest.mark.parametrize(
    "count", [FEW, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_damaged_base_is_refused_or_means_what_it_says(tmp_path, count):
    path, base = tmp_path / "c.yaml", tmp_path / "b.yaml"
    path.write_text("base: [b.yaml, b.yaml]\ntrain: {seed: 9}\n")
    accepted = 0
    for what, data in mutations(WHOLE.encode(), count, seed=1):
        base.write_bytes(data)
        config = survive(lambda: load(path))
        if not isinstance(config, KaizenError):
            accepted += 1
            below = _flat(data)
            below.pop("train", None)  # a null, in whose place the section above it is taken
            assert means(config, below | {"train.seed": 9}), what
    assert 0 < accepted < count


def test_a_damaged_file_above_a_base_is_refused_or_means_what_it_says(tmp_path):
    path = tmp_path / "c.yaml"
    (tmp_path / "b.yaml").write_text(WHOLE)
    own = b"base: b.yaml\noptim: {lr: 0.3, momentum: 0.8}\nviews: {mean: [0.1, 0.2, 0.3]}\n"
    for what, data in mutations(own, FEW, seed=2):
        path.write_bytes(data)
        config = survive(lambda: load(path))
        if not isinstance(config, KaizenError):
            below = _flat(WHOLE.encode()) if yaml.safe_load(data).get("base") else {}
            assert means(config, below | _flat(data)), what


def means(config, said) -> bool:
    """Whether a configuration has every value that a file says."""
    has = flatten(config.dump())
    said = {key: value for key, value in said.items() if value != {} and key != "base"}
    return all(key in has and _same(has[key], value) for key, value in said.items())


def _same(ours, theirs) -> bool:
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, float):
        # PyYAML takes 1e-5 for text, as YAML 1.1 has it.
        return math.isfinite(ours) and ours == float(theirs)
    return type(ours) is type(theirs) and ours == theirs


def _flat(data: bytes) -> dict:
    return flatten(yaml.safe_load(data) or {})
