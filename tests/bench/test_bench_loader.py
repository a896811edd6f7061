"""The loader's benchmark: it runs, its rows are named and whole. Speed is not tested."""

import io
import json

import pytest
from rich.console import Console

from kaizen_dist.bench import loader
from kaizen_dist.bench.loader import BenchResult, Row, bench_loader
from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.views.backend import resolve


def test_every_contender_gets_a_row(digits, capsys):
    result = bench_loader(digits.root, size=8, batch=64, workers=1, repeats=1, seconds=0.01)
    plain = json.loads(json.dumps(result.to_json()))
    ours = ["dali", "torch"] if resolve("auto") == "dali" else ["torch"]
    assert [row["name"] for row in plain["rows"]] == [*ours, "usual"]
    for row in plain["rows"]:
        assert row["images_per_second"] > 0
        assert row["cpu_ms_per_image"] > 0
    assert plain["machine"]["cores"] >= 1
    assert plain["settings"]["batch"] == 64
    assert "usual" in capsys.readouterr().err


def test_a_turn_counts_all_clocks_and_leaves_the_start_out(monkeypatch):
    """Two workers, one batch of 10 images each by turns, each 3 s of CPU a batch."""
    wall, own = iter(range(100)), iter((50.0, 51.0))
    monkeypatch.setattr(loader.time, "perf_counter", lambda: float(next(wall)))
    monkeypatch.setattr(loader.time, "process_time", lambda: next(own))
    made = ((10, (number % 2, 100.0 + 3 * (number // 2))) for number in range(100))
    row = loader._measure("x", lambda: made, warm_up=4, seconds=5)
    # The clock ticks at every look: 0, then 1 to 4 below 5 s, at 5 the end, read once more: 6.
    assert row.images_per_second == pytest.approx(40 / 6)
    assert row.cpu_ms_per_image == pytest.approx(1000 * (1 + 4 * 3) / 40)


def test_the_table_compares_with_the_usual_way():
    rows = [Row("dali", 3000, 0.2), Row("torch", 1500, 0.4), Row("usual", 500, 1.4)]
    table = BenchResult(rows, {}, {"size": 32, "workers": 2}).table()
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    line = next(line for line in console.file.getvalue().splitlines() if "dali" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == [
        "dali", "3,000", "0.200", "6.00", "7.00",
    ]  # fmt: skip


def test_bad_requests_are_refused(digits, tmp_path):
    with pytest.raises(UsageError, match="workers"):
        bench_loader(digits.root, workers=0)
    with pytest.raises(UsageError, match="too few"):
        bench_loader(digits.root, batch=10**6)
    with pytest.raises(DataError, match="none"):
        bench_loader(tmp_path / "none")
