"""Damaged results of a run in a sweep: refused by name, or in its tables as they stand."""

import csv
import json
import os
from pathlib import Path

import pytest
from fuzzing import CASES, mutations, survive

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.runs.results import DistillSwitches, Results, StreamSummary
from kaizen_dist.sweep.folder import Outcome, SweepFolder
from kaizen_dist.sweep.spec import read_sweep
from kaizen_dist.sweep.table import write_tables

LINES = "error: \x1b[31m a|b\nx"


def results(seed: int) -> Results:
    made = Results(
        accuracy=[[0.9, None], [0.6, 0.8]],
        knn=[[0.8, None], [0.7, 0.7]],
        method="byol",
        distill=DistillSwitches(features=True, classifier=True),
        classifier=True,
        replay_fraction=0.01,
        world_size=1,
        stream=StreamSummary(
            path="/s",
            fingerprint="f",
            scenario="class",
            source="digits",
            tasks=2,
            classes=2,
            train_counts=[4, 4],
            val_counts=[2, 2],
        ),
        task_classes=[["a"], ["b"]],
        seed=seed,
        config_sha256="0",
        finished=True,
    )
    made.update_metrics()
    return made


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    (tmp_path / "base.yaml").write_text("train: {epochs: 20}\n")
    (tmp_path / "sweep.yaml").write_text(
        "title: '[/] a|b'\nbase: base.yaml\ngrid: {classifier.hidden: [8, 16]}\nseeds: [0, 1]\n"
    )
    made = SweepFolder(tmp_path / "out", read_sweep(tmp_path / "sweep.yaml", ()))
    for run in made.sweep.runs:
        made.run(run).mkdir(parents=True)
        results(run.seed).write(made.run(run))
    return made


def rows(folder: SweepFolder) -> dict[str, dict[str, str]]:
    with (folder.root / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("count", [60, pytest.param(CASES, marks=pytest.mark.slow)])
def test_damaged_results_are_refused_by_name_or_stand_in_the_table(folder, count):
    damaged = folder.sweep.runs[1]
    path = folder.run(damaged) / "results.json"
    accepted = 0
    for what, data in mutations(path.read_bytes(), count):
        path.write_bytes(data)
        found = survive(lambda: write_tables(folder, {}))
        if isinstance(found, KaizenError):
            assert str(path) in str(found), what
            continue
        accepted += 1
        row, said = rows(folder)[damaged.name], json.loads(data)
        for column in ("final_accuracy", "forgetting", "wall_seconds", "images_per_second"):
            value = said.get(column, 0.0 if column == "wall_seconds" else None)
            assert row[column] == ("" if value is None else str(float(value))), what
        assert json.loads(row["accuracy"] or "null") == said.get("accuracy", []), what
    assert 0 < accepted < count


@pytest.mark.parametrize("lay", [os.mkfifo, lambda p: Path(p).symlink_to("/dev/zero")])
def test_results_that_are_no_regular_file_are_refused_by_name(folder, lay):
    path = folder.run(folder.sweep.runs[0]) / "results.json"
    path.unlink()
    lay(path)
    found = survive(lambda: write_tables(folder, {}))
    assert isinstance(found, DataError)
    assert str(path) in str(found)


def test_a_failed_run_is_one_row_whatever_it_said(folder):
    first = folder.sweep.runs[0]
    (folder.run(first) / "results.json").unlink()
    write_tables(folder, {first.name: Outcome(1, LINES)})
    assert rows(folder)[first.name]["error"] == LINES
    assert len((folder.root / "summary.md").read_text().splitlines()) == 4
