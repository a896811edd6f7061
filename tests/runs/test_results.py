"""results.json: what it may say, and what those of older versions said."""

import pytest
from pydantic import ValidationError

from kaizen_dist.runs.results import Results

GIVEN = {
    "accuracy": [[0.5, None]],
    "knn": [[0.5, None]],
    "method": "byol",
    "distill": {"features": True, "classifier": True},
    "classifier": True,
    "replay_fraction": 0.01,
    "world_size": 2,
    "stream": {
        "path": "/s",
        "fingerprint": "0" * 64,
        "scenario": "class",
        "source": "digits",
        "tasks": 2,
        "classes": 4,
        "train_counts": [10, 10],
        "val_counts": [5, 5],
    },
    "task_classes": [["0", "1"], ["2", "3"]],
    "seed": 0,
    "config_sha256": "0" * 64,
}


def test_results_of_older_versions_still_open():
    """They have a place for a matrix that was never measured, and do not say who made the views."""
    found = Results.model_validate(GIVEN | {"linear": None})
    assert "linear" not in found.model_dump()
    assert found.views_backend is None
    assert found.replay_order == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"finished": True},
        {"world_size": 0},
        {"replay_order": 3},
        {"seed": -1},
        {"seed": "1"},
        {"wall_seconds": float("inf")},
        {"images_per_second": float("nan")},
        {"accuracy": [[1.5, None]]},
        {"knn": []},
        {"task_classes": [["0", "1"]]},
        {"stream": GIVEN["stream"] | {"val_counts": [5]}},
        {"linear_probe": None},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        Results.model_validate(GIVEN | wrong)
