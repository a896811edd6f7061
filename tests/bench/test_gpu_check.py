"""tools/gpu_check works from beginning to end where there is no GPU, at next to no size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is run by hand"),
]


def found(folder: Path, call: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, figures and what was said."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "gpu_check", call, folder, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads((folder / "gpu.json").read_text()), done.stdout + done.stderr


def test_smoke_takes_a_step_of_every_method_and_makes_a_batch(tmp_path):
    code, figures, said = found(tmp_path, "smoke", "--slack", "10", "--limit", "900")
    assert code == 0, said
    assert figures["facts"]["found"]["gpu"] is None
    methods = {row["name"].split(",")[0] for row in figures["methods"]["found"]["rows"]}
    assert methods == {"byol", "simclr", "mocov2plus", "vicreg"}
    assert all(row["images_per_second"] > 0 for row in figures["batch"]["found"]["rows"])


def test_full_leaves_figures_of_everything(tmp_path):
    code, figures, said = found(tmp_path, "full", "--slack", "10", "--limit", "1800")
    assert code == 0, said
    assert figures["resume"]["found"]["equal"]
    for part in ("steps-18", "loader-32-1", "loader-224-1"):
        assert all(row["images_per_second"] > 0 for row in figures[part]["found"]["rows"])
    names = [row["name"] for row in figures["steps-18"]["found"]["rows"]]
    assert names[:2] == ["eager", "as configured"]
    assert len(figures["results"]["accuracy"]) == 2


def test_a_part_that_is_out_of_time_is_said_and_the_others_go_on(tmp_path):
    code, figures, said = found(tmp_path, "smoke", "--slack", "0.01", "--limit", "900")
    assert code == 1
    assert "failed: facts, prepare, methods, batch" in said
    assert figures["facts"]["exit"] == "ended after 0 s"
