"""The loader's benchmark: it runs, its rows are named and whole. Speed is not tested."""

import io
import json

import numpy as np
import pytest
import torch
from emulated_gpu import CUDA, EmulatedGpu
from rich.console import Console
from typer.testing import CliRunner

from kaizen_dist.bench import baseline_loader, loader
from kaizen_dist.bench.baseline_loader import TwoViews
from kaizen_dist.bench.loader import bench_loader
from kaizen_dist.bench.result import Spent
from kaizen_dist.cli import app
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.views.choose import resolve

# The usual way's workers come from it, too; the first to ask decides what it has imported.
pytestmark = pytest.mark.usefixtures("fork_server")


def test_every_contender_gets_a_row(digits, capsys):
    result = bench_loader(digits.root, size=8, batch=64, workers=1, repeats=1, seconds=0.01)
    plain = json.loads(json.dumps(result.to_json()))
    ours = ["dali", "torch"] if resolve("auto") == "dali" else ["torch"]
    assert [row["name"] for row in plain["rows"]] == [*ours, "usual"]
    for row in plain["rows"]:
        assert row["images_per_second"] > 0
        assert row["cpu_ms_per_image"] > 0
        low, high = row["images_per_second_spread"]
        assert low <= row["images_per_second"] <= high
    assert plain["rows"][-1]["times_images_per_second"] == 1
    assert plain["machine"]["cores"] >= 1
    assert plain["settings"]["batch"] == 64
    assert "usual" in capsys.readouterr().err


def test_linked_tars_cannot_be_compared(digits, tmp_path):
    pattern = f"webdataset:{digits.root}/task-00/*.tar"
    linked = prepare(pattern, tmp_path / "linked", tasks=1, link=True, progress=False)
    with pytest.raises(UsageError, match="prepare it without --link"):
        bench_loader(linked.root)


def test_a_turn_counts_all_clocks_and_leaves_the_start_out(monkeypatch):
    """Two workers, one batch of 10 images each by turns, each 3 s of CPU a batch."""
    wall, own = iter(range(100)), iter((50.0, 51.0))
    monkeypatch.setattr(loader.time, "perf_counter", lambda: float(next(wall)))
    monkeypatch.setattr(loader.time, "process_time", lambda: next(own))
    made = ((10, (number % 2, 100.0 + 3 * (number // 2))) for number in range(100))
    turn = loader.measure(lambda: made, warm_up=4, seconds=5)
    # The clock ticks at every look: 0, then 1 to 4 below 5 s, at 5 the end, read once more: 6.
    assert turn.seconds == pytest.approx(6 / 40)
    assert turn.cpu_seconds == pytest.approx((1 + 4 * 3) / 40)


def turn_of(images_per_second, cpu_ms_per_image):
    return Spent(1 / images_per_second, cpu_ms_per_image / 1000)


def test_rows_are_medians_with_spread_compared_with_the_usual_way():
    turns = {
        "dali": [turn_of(3000, 0.2), turn_of(2000, 0.3), turn_of(3100, 0.1)],
        "usual": [turn_of(400, 2.0), turn_of(500, 1.4), turn_of(600, 1.0)],
        "usual, Pillow's blur": [turn_of(1000, 0.7)],
    }
    console = Console(width=80, file=io.StringIO())
    console.print(loader._sheet("two views", loader.rows_of(turns)).table())
    assert "two views" in console.file.getvalue()
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines] == [
        ["dali", "3,000 ±22 %", "0.200 ±50 %", "6.00", "7.00"],
        ["usual", "500 ±20 %", "1.400 ±33 %", "1.00", "1.00"],
        ["usual, Pillow's blur", "1,000 ±0 %", "0.700 ±0 %", "2.00", "2.00"],
    ]


def test_contenders_take_turns_in_both_orders(digits, monkeypatch):
    taken = []

    def measure(start, warm_up, seconds):
        taken.append(start)
        return turn_of(1, 1)

    monkeypatch.setattr(loader, "measure", measure)
    result = bench_loader(digits.root, size=72, batch=8, repeats=2, device=torch.device("cpu"))
    assert result.sheets[0].title == "two views of 72 px on cpu, 2 workers"
    half = len(taken) // 2
    assert taken[half:] == taken[:half][::-1]
    exact, with_pillow = taken[:half][-2:]
    assert with_pillow.keywords == exact.keywords | {"pillow_blur": True}
    assert with_pillow.func is exact.func


def test_the_device_is_the_gpu_where_there_is_one(digits, monkeypatch):
    asked = []
    monkeypatch.setattr(loader, "bench_loader", lambda *_, device, **__: asked.append(device))
    for gpus, named in ((0, []), (2, []), (2, ["--device", "cuda:1"]), (2, ["--device", "cpu"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        CliRunner().invoke(app, ["bench", "loader", str(digits.root), *named])
    assert [str(device) for device in asked] == ["cpu", "cuda:0", "cuda:1", "cpu"]
    for wrong in ("cuda:2", "tpu"):
        with pytest.raises(UsageError, match="has cuda:0, cuda:1, cpu"):
            loader.device_named(wrong)


def test_the_usual_way_copies_to_a_gpu_from_pinned_memory(digits, monkeypatch):
    """Both views and the labels, before the batch counts; torch's own loader stands aside."""
    EmulatedGpu(monkeypatch)
    asked, copied = [], []
    made = (torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8), np.zeros(4, np.int64))

    def data_loader(dataset, **options):
        asked.append(options["pin_memory"])
        return [(made, (1, 0.5))]

    def to(tensor, device, non_blocking=False):
        copied.append((tuple(tensor.shape), device, non_blocking))

    monkeypatch.setattr(baseline_loader, "DataLoader", data_loader)
    monkeypatch.setattr(torch.Tensor, "to", to)
    shards = digits.split(0, "train").shards
    views = ViewsConfig(size=8)
    assert list(baseline_loader.batches(shards, views, 4, 1, 2, device=CUDA)) == [(4, (1, 0.5))]
    assert asked == [True]
    shapes = [(4, 3, 8, 8), (4, 3, 8, 8), (4,)]
    assert copied == [(shape, CUDA, True) for shape in shapes]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_all_contenders_bring_their_views_there(digits):
    result = bench_loader(
        digits.root, size=8, batch=64, workers=1, repeats=1, seconds=0.1, device=CUDA
    )
    assert result.settings["device"] == "cuda:0"
    assert all(row["images_per_second"] > 0 for row in result.rows)


@pytest.mark.parametrize("pillow", [False, True])
def test_the_usual_way_makes_two_normalised_views(digits, pillow):
    config = ViewsConfig(size=72, blur=(1.0, 0.1))
    views = TwoViews(config, pillow_blur=pillow)
    blurred = [any("Blur" in str(step) for step in view.transforms) for view in views.transforms]
    assert blurred == [True, True]
    split = digits.split(0, "train")
    first, second, label = views({"png": split.read(3), "cls": b"1"})
    assert first.shape == second.shape == (3, 72, 72)
    assert label == 1
    assert -2.2 < first.min() < first.max() < 2.7


def test_bad_requests_are_refused(digits, tmp_path):
    with pytest.raises(UsageError, match="workers"):
        bench_loader(digits.root, workers=0)
    with pytest.raises(UsageError, match="too few"):
        bench_loader(digits.root, batch=10**6)
    with pytest.raises(DataError, match="none"):
        bench_loader(tmp_path / "none")
