"""`bench checkpoint`: every column is measured, the table shows it, and nothing is left behind."""

import io
import json

from rich.console import Console

from kaizen_dist.bench.checkpoint import bench_checkpoint
from kaizen_dist.config import load
from kaizen_dist.distributed.context import RankContext

SMALL = ["train.batch_size=8", "train.threads=1", "replay.batch_size=8", "ssl.hidden=24"]
SMALL += [
    "ssl.dim=12",
    "ssl.predictor_hidden=20",
    "distill.hidden=20",
    "model.backbone=tiny_backbone:Tiny",
]


def test_a_save_is_measured_and_nothing_is_left_behind(configs, tmp_path):
    config = load(configs / "digits.yaml", SMALL)
    result = bench_checkpoint(config, 10, 2, RankContext(), tmp_path)
    plain = json.loads(json.dumps(result.to_json()))
    (row,) = plain["rows"]
    assert row["stall_spread"][0] <= row["stall_seconds"] <= row["stall_spread"][1]
    for name in ("step_seconds", "save_seconds", "restore_seconds", "share_at_one_a_minute"):
        assert row[name] > 0, name
    assert row["stall_seconds"] <= row["save_seconds"]
    assert 0 < row["tensor_bytes"] < 2 * row["disk_bytes"]
    assert plain["settings"] == {"classes": 10, "repeats": 2, "ranks": 1}
    assert list(tmp_path.iterdir()) == []
    console = Console(width=100, file=io.StringIO())
    console.print(result.sheets[0].table())
    assert "disk bytes" in console.file.getvalue()
    assert "share at one a minute" in console.file.getvalue()
