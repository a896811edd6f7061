"""Promise 4, the short form: a run of two ranks killed four times (--slow: one of four, six times).

`tools/kill_test` is the long form, over methods and view backends.
"""

import random

import pytest
from killed_rank import wrap
from killing import MOMENTS, Setting, kill_and_compare

from kaizen_dist.stream.prepare import prepare

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("method", "views", "world", "kills"),
    # Sums over more than two ranks depend on their order.
    [
        pytest.param("mocov2plus", "torch", 4, 6, marks=pytest.mark.slow),
        ("byol", "dali", 2, 4),
    ],
)
def test_killed_runs_end_as_undisturbed_ones(tmp_path, configs, method, views, world, kills):
    if views == "dali":
        pytest.importorskip("nvidia.dali")
    stream = prepare("digits", tmp_path / "digits", tasks=3, progress=False).root
    setting = Setting(method, views, world)
    hit = kill_and_compare(
        setting, stream, configs, tmp_path / "runs", kills, random.Random(method)
    )
    assert len(hit) == kills


@pytest.mark.parametrize("moment", MOMENTS)
def test_every_moment_is_a_function_of_the_package(moment):
    wrap(MOMENTS[moment][0], lambda function: function)
