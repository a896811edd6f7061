"""Runs that an earlier sweep has made are linked, if they are the same."""

from pathlib import Path

import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.sweep.executors import LocalExecutor
from kaizen_dist.sweep.runner import run_sweep
from kaizen_dist.sweep.spec import Sweep, read_sweep

TINY = """
base: {digits}
set:
  ssl: {{hidden: 16, dim: 8, predictor_hidden: 16}}
  classifier.hidden: 16
  model.backbone: tiny_backbone:Tiny
  distill.hidden: 16
  train.max_steps: 1
  eval.bank: 50
  eval.knn: false
  eval.forward_transfer: false
"""


@pytest.fixture
def sweep(tmp_path, configs):
    """`sweep(name, text)`: a sweep of tiny runs that ends in this text."""

    def read(name: str, more: str) -> Sweep:
        path = tmp_path / f"{name}.yaml"
        path.write_text(TINY.format(digits=configs / "digits.yaml") + more)
        return read_sweep(path)

    return read


def stream(folder: Path, seed: int) -> str:
    return str(prepare("digits", folder, tasks=2, seed=seed, progress=False).root)


def test_the_same_run_on_the_same_stream_is_made_once(tmp_path, sweep):
    given = stream(tmp_path / "stream", 5)
    first = sweep("first", "list: [{name: Kaizen}]\nseeds: [1]\n")
    assert run_sweep(first, given, tmp_path / "first", LocalExecutor(1)) == {}
    made = tmp_path / "first/runs/Kaizen/seed-1"
    # Another name, another moment of saving: nothing of what is computed.
    same = "{name: all terms, set: {checkpoint.keep_last: 3}}"
    second = sweep(
        "second", f"list: [{same}, {{name: no replay, set: {{replay.fraction: 0}}}}]\nseeds: [1]\n"
    )
    before = (made / "events.jsonl").stat().st_mtime_ns
    run_sweep(second, given, tmp_path / "second", LocalExecutor(1), [tmp_path / "first"])
    runs = tmp_path / "second/runs"
    assert (runs / "all_terms/seed-1").resolve() == made
    assert not (runs / "no_replay/seed-1").is_symlink()
    assert (made / "events.jsonl").stat().st_mtime_ns == before
    table = (tmp_path / "second/sweep.csv").read_text()
    assert table.count("finished") == 2
    # The links survive a move of both folders.
    (tmp_path / "moved").mkdir()
    for name in ("first", "second"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert (tmp_path / "moved/second/runs/all_terms/seed-1/results.json").is_file()


def test_another_stream_is_another_run(tmp_path, sweep):
    asked = sweep("one", "list: [{name: Kaizen}]\nseeds: [1]\n")
    run_sweep(asked, stream(tmp_path / "a", 5), tmp_path / "first", LocalExecutor(1))
    other = stream(tmp_path / "b", 6)
    run_sweep(asked, other, tmp_path / "second", LocalExecutor(1), [tmp_path / "first"])
    assert not (tmp_path / "second/runs/Kaizen/seed-1").is_symlink()


def test_a_folder_that_is_not_there_is_named(tmp_path, sweep):
    asked = sweep("one", "list: [{name: Kaizen}]\nseeds: [1]\n")
    given = stream(tmp_path / "a", 5)
    with pytest.raises(DataError, match="nowhere"):
        run_sweep(asked, given, tmp_path / "out", LocalExecutor(1), [tmp_path / "nowhere"])
