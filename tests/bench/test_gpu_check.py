"""tools/gpu_check works from beginning to end where there is no GPU, at small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is run by hand")
def test_it_leaves_figures_of_everything(tmp_path):
    # Its python3 is the one of these tests.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / "tools" / "gpu_check", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = ("loader", "step-32", "few-32", "step-224", "train")
    figures = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    for found in figures.values():
        assert all(row["images_per_second"] > 0 for row in found["rows"])
        assert found["machine"]["gpu"] is None
    assert [row["name"] for row in figures["step-32"]["rows"]] == ["eager", "as configured"]
    assert (tmp_path / "run" / "results.json").is_file()
