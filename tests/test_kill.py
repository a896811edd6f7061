"""Promise 4, the short form: a run of two ranks killed ten times loses nothing.

`tools/kill_test` is the long form, over methods and view backends.
"""

import random

import pytest
from killing import Setting, kill_and_compare

from kaizen_dist.stream.prepare import prepare

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("method", "views", "kills"), [("mocov2plus", "torch", 6), ("byol", "dali", 4)]
)
def test_killed_runs_end_as_undisturbed_ones(tmp_path, configs, method, views, kills):
    if views == "dali":
        pytest.importorskip("nvidia.dali")
    stream = prepare("digits", tmp_path / "digits", tasks=3, progress=False).root
    setting = Setting(method, views, world=2)
    hit = kill_and_compare(
        setting, stream, configs, tmp_path / "runs", kills, random.Random(method)
    )
    assert len(hit) == kills
