"""Damaged sweep files: refused, or asking for just the runs that they say.

A file means what it says if it has as many runs as its lists multiply to, each under a name and a
seed of its own, and every value that it sets is that of the runs it is set for.
"""

import math
from pathlib import Path

import pytest
import yaml
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.config import flatten
from kaizen_dist.sweep.spec import RUNS_LIMIT, read_sweep

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
ASKED = f"""title: Asked
base: {DIGITS}
prepare: {{source: digits, tasks: 5}}
set: {{train.epochs: 3, eval.ncm: true}}
list:
  - {{name: kaizen}}
  - {{name: no distill, set: {{distill.features: false}}, prepare: {{tasks: 2}}}}
grid: {{replay.fraction: [0.0, 0.01]}}
seeds: [1, 2]
"""


@pytest.mark.parametrize(
    "count", [40, pytest.param(CASES, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_damaged_sweep_is_refused_or_means_what_it_says(tmp_path, count):
    path = tmp_path / "asked.yaml"
    accepted = 0
    for what, data in mutations(ASKED.encode(), count):
        path.write_bytes(data)
        sweep = survive(lambda: read_sweep(path))
        if not isinstance(sweep, KaizenError):
            accepted += 1
            assert means(sweep, yaml.safe_load(data)), what
    assert 0 < accepted < count


def means(sweep, said) -> bool:
    variants = said.get("list") or [{"name": None}]
    grid, seeds = said.get("grid") or {}, said.get("seeds") or [None]
    count = len(variants) * len(seeds) * math.prod(map(len, grid.values()))
    by_name = {variant["name"]: variant for variant in variants}
    runs = sweep.runs
    return len(runs) == count == len({run.name for run in runs}) and all(
        _means(run, said, by_name[run.varied.get("variant")], grid, seeds) for run in runs
    )


def _means(run, said, variant, grid, seeds) -> bool:
    point = {key: value for key, value in run.varied.items() if key != "variant"}
    wanted = (said.get("set") or {}) | (variant.get("set") or {}) | point
    prepared = (said.get("prepare") or {}) | (variant.get("prepare") or {})
    has = flatten(run.config.dump())
    return (
        all(value in grid[key] for key, value in point.items())
        and (seeds == [None] or run.seed in seeds)
        and all(has[key] == value for key, value in wanted.items() if key in has)
        and all(key in has or key.startswith("prepare.") for key in wanted)
        and (run.preparation is None) == (not prepared)
        and all(getattr(run.preparation, key) == value for key, value in prepared.items())
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: {" + ", ".join(f"k{n}: [{'1, ' * 99}1]" for n in range(9)) + "}", "runs; 10,000"),
        (f"seeds: [{', '.join(map(str, range(RUNS_LIMIT + 1)))}]", "seeds"),
        ("seeds: [-1]", "seeds.0"),
        ("seeds: [100000000000000000000]", "seeds.0"),
        ("prepare: {source: digits, workers: 100000}", "workers"),
        ("prepare: {source: digits, val_fraction: .nan}", "val_fraction"),
        ("prepare: {source: digits, resize: 10000000000}", "resize"),
        ('list: [{name: "a\\nb"}]', "name"),
        ("grid: {train.epochs: [3]}\ngrid: {optim.lr: [1.0]}", "'grid' stands here a second time"),
        ("set: {optim.lr: .inf}", "optim.lr"),
    ],
)
def test_what_is_beyond_all_bounds_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "asked.yaml"
    path.write_text(f"base: {DIGITS}\n{text}\n")
    error = survive(lambda: read_sweep(path))
    assert isinstance(error, UsageError)
    assert said in str(error)
