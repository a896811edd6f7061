"""Sweep files: which runs they ask for, and what is said of bad ones."""

from pathlib import Path

import pytest

from kaizen_dist.common.errors import UsageError
from kaizen_dist.sweep.spec import Preparation, folder_name, read_sweep

DIGITS = Path(__file__).parents[2] / "configs" / "digits.yaml"
SWEEPS = sorted((DIGITS.parent / "sweeps").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "asked.yaml"
        path.write_text(f"base: {DIGITS}\n{text}")
        return path

    return write


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.name)
def test_every_shipped_sweep_reads(path):
    sweep = read_sweep(path)
    assert len(sweep.runs) > 1
    assert all(run.preparation for run in sweep.runs), "one command, stream included"


def test_variants_grid_and_seeds_multiply_and_name_the_folders(write):
    sweep = read_sweep(
        write(
            "prepare: {source: digits}\nset: {train.epochs: 3}\n"
            "list: [{name: kaizen}, {name: no distill, set: {distill.features: false}}]\n"
            "grid: {replay.fraction: [0, 1e-2], prepare.tasks: [2, 5]}\nseeds: [1, 2]\n"
        )
    )
    assert len(sweep.runs) == 2 * 2 * 2 * 2
    assert sweep.keys == ["variant", "replay.fraction", "prepare.tasks"]
    assert len(sweep.variants) == 8
    first, last = sweep.runs[0], sweep.runs[-1]
    assert first.name == "kaizen,replay.fraction=0,prepare.tasks=2/seed-1"
    assert last.name == "no_distill,replay.fraction=0.01,prepare.tasks=5/seed-2"
    assert last.config.replay.fraction == 0.01
    assert last.config.train.seed == 2
    assert last.config.train.epochs == 3
    assert not last.config.distill.features
    assert first.config.distill.features
    assert {run.preparation.tasks for run in sweep.runs} == {2, 5}


def test_a_run_keeps_its_folder_when_the_sweep_grows(write):
    small = read_sweep(write("grid: {replay.fraction: [0.01]}\nseeds: [1]\n"))
    large = read_sweep(write("grid: {replay.fraction: [0, 0.01, 0.1]}\nseeds: [3, 1]\n"))
    assert {run.name for run in small.runs} < {run.name for run in large.runs}


def test_a_variant_may_have_a_base_and_a_stream_of_its_own(write, tmp_path):
    (tmp_path / "other.yaml").write_text("train: {epochs: 77}\n")
    sweep = read_sweep(
        write("prepare: {source: digits, seed: 3}\nlist: [{name: a, base: other.yaml}, "
              "{name: b, prepare: {tasks: 1}}]\n")
    )  # fmt: skip
    assert sweep.runs[0].config.train.epochs == 77
    assert sweep.runs[1].preparation == Preparation(source="digits", seed=3, tasks=1)
    # A stream that is given on the command line takes the place of the first one's alone.
    assert [run.own_stream for run in sweep.runs] == [False, True]


def test_overrides_are_for_all_runs_and_for_streams_and_seeds(write):
    path = write("prepare: {source: digits}\ngrid: {train.epochs: [2, 3]}\n")
    sweep = read_sweep(path, ["seeds=[7, 8]", "prepare.tasks=2", "replay.fraction=0.5"])
    assert {run.seed for run in sweep.runs} == {7, 8}
    assert {run.config.replay.fraction for run in sweep.runs} == {0.5}
    assert {run.preparation.tasks for run in sweep.runs} == {2}
    with pytest.raises(UsageError, match=r"the sweep varies train\.epochs"):
        read_sweep(path, ["train.epochs=9"])


def test_all_problems_are_told_at_once_with_the_nearest_names(write):
    path = write(
        "bsae: 3\nprepare: {source: digits, taks: 5}\nset: {trian.threads: 1}\n"
        "list: [{nmae: a}, {name: b, set: {lr: 0.3, replay.fraction: many}}]\n"
        "grid: {replay.fracton: [0], train.seed: [1], train.epochs: []}\nseeds: [1, two]\n"
    )
    with pytest.raises(UsageError) as caught:
        read_sweep(path)
    for expected in (
        "bsae: unknown key; did you mean base?",
        "prepare.taks: unknown key; did you mean prepare.tasks?",
        "trian: unknown key; did you mean train?",
        "list.0.nmae: unknown key; did you mean list.0.name?",
        "lr: unknown key; did you mean optim.lr?",
        "replay.fraction: Input should be a valid number, got 'many'",
        "replay.fracton: unknown key; did you mean replay.fraction?",
        "train.seed: name the seeds",
        "grid.train.epochs: holds no value",
        "seeds.1: Input should be a valid integer",
    ):
        assert expected in str(caught.value), str(caught.value)


def test_a_run_that_is_asked_for_twice_is_refused(write):
    with pytest.raises(UsageError, match="more than once"):
        read_sweep(write("seeds: [1, 1]\n"))


def test_names_of_folders_are_plain_and_stay_apart():
    assert folder_name(["a", "b=0.1"]) == "a,b=0.1"
    hard = [folder_name([name]) for name in ("../x", "x", "x y", "x/y", "ä", "x" * 300)]
    assert len(set(hard)) == len(hard)
    assert all(len(n) <= 120 and "/" not in n and not n.startswith(".") for n in hard)
