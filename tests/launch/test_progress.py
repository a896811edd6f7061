"""How far a run has come, over hand-made folders with hand-worked numbers.

Both batches are cut into gcd(20, 10) = 10 lanes. A task of 100 images then has (100 / 10) /
(20 / 10) = 5 steps an epoch, one of 60 has 3; ten epochs of them are 50 and 30 steps.
"""

import pytest
from run_folders import CONFIG, NOW, event, make_run

from kaizen_dist.launch.progress import TrainingLength, eta, progress
from kaizen_dist.runs.reader import last_rows


def test_in_the_middle_of_the_first_task(tmp_path):
    """20 of 50 steps are done: 30 + 30 are left, 1200 images at 40 a second."""
    events = [event(0, step, ago=100 - step) for step in range(20)]
    run = make_run(tmp_path / "run", events, checkpoints=[("t00-s000010", 90.0)])
    at = progress(run, NOW)
    assert (at.task, at.tasks, at.epoch, at.step, at.steps) == (0, 2, 3, 20, 50)
    assert (at.images_per_second, at.eta_seconds) == (40.0, 30.0)
    assert (at.checkpoint, at.checkpoint_age) == ("t00-s000010", 90.0)
    assert (at.silence, at.interval, at.finished) == (81.0, 1.0, False)


def test_steps_may_be_bounded(tmp_path):
    """At most 40 steps a task: 20 + 30 are left, 1000 images at 40 a second."""
    config = CONFIG.replace("max_steps: null", "max_steps: 40")
    at = progress(make_run(tmp_path / "run", [event(0, 19)], config=config), NOW)
    assert (at.steps, at.eta_seconds) == (40, 25.0)


def test_own_lanes_and_odd_sizes():
    """4 lanes of 107 // 4 = 26 images, 5 of each a step: 5 steps an epoch."""
    config = {
        "train": {"epochs": 2, "batch_size": 20, "max_steps": None, "lanes": 4},
        "replay": {"batch_size": 8},
    }
    assert TrainingLength.model_validate(config).steps_of_tasks([107]) == [10]
    assert TrainingLength().steps_of_tasks([107]) == []


def test_between_two_tasks_the_checkpoint_knows_more(tmp_path):
    """The first task is done and measured: 30 steps, 600 images at 40 a second."""
    run = make_run(tmp_path / "run", [event(0, 49)], checkpoints=[("t01-s000000", 5.0)])
    at = progress(run, NOW)
    assert (at.task, at.step, at.steps, at.eta_seconds) == (1, 0, 30, 15.0)
    assert at.epoch is None


def test_the_speed_is_the_median_of_the_last_ten_rows(tmp_path):
    """The compiling of the first steps, and one hiccup, are not its speed."""
    speeds = [1.0] * 5 + [40.0] * 9 + [2.0]
    run = make_run(tmp_path / "run", [event(0, i, speed) for i, speed in enumerate(speeds)])
    assert progress(run, NOW).images_per_second == 40.0


def test_a_finished_run(tmp_path):
    run = make_run(
        tmp_path / "run", [event(1, 29)], finished=True, checkpoints=[("t02-s000000", 5.0)]
    )
    at = progress(run, NOW)
    assert at.finished
    assert (at.task, at.tasks, at.step, at.steps) == (1, 2, 30, 30)
    assert at.eta_seconds is None


def test_a_run_without_a_step(tmp_path):
    at = progress(make_run(tmp_path / "run"), NOW)
    assert (at.task, at.step, at.eta_seconds, at.checkpoint, at.silence) == (None,) * 5
    assert at.tasks == 2


def test_files_that_are_half_written(tmp_path):
    run = make_run(tmp_path / "run", [event(0, 3), event(0, 4)[:20]])
    text = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(text[:-1])
    (run / "results.json").unlink()
    at = progress(run, NOW)
    assert (at.task, at.step, at.tasks, at.eta_seconds) == (0, 4, None, None)
    assert at.damage == ""


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    run = make_run(tmp_path / "run", [event(0, step % 50) for step in range(20_000)])
    rows = last_rows(run)
    assert rows[-1].step == 19_999 % 50
    assert 10 < len(rows) < 1000


@pytest.mark.parametrize(
    ("place", "speed"), [(None, 40.0), ((0, 3), None), ((0, 3), 0.0)], ids=["where", "speed", "0"]
)
def test_no_eta_where_something_is_not_known(place, speed):
    assert eta([50, 30], place, 20, speed) is None
