"""Events that go on where a checkpoint stands, and the meter behind images per second."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kaizen_dist.journal import Journal, StepMeter, keep_events


def rows(path):
    return [(r["task"], r["step"]) for r in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [{"task": t, "step": s, "loss": 1.0} for t in range(3) for s in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_to_be_repeated_are_dropped(events):
    keep_events(events, (1, 2))
    assert rows(events) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def test_a_line_cut_short_by_a_kill_is_dropped(events):
    events.write_text(events.read_text()[:-10])
    keep_events(events, (9, 0))
    assert len(rows(events)) == 11


def test_a_journal_goes_on(events):
    journal = Journal(events.parent, active=True)
    with journal.open(task=2, step=1, global_step=9):
        journal.event({"task": 2, "step": 1, "loss": 0.5}, global_step=9)
    assert rows(events)[-2:] == [(2, 0), (2, 1)]
    assert list((events.parent / "tensorboard").iterdir())


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path):
    """As its own reader shows them, to whom an unfinished writer has left steps to be repeated."""
    for position, steps in (((0, 0, 0), range(6)), ((0, 4, 4), range(4, 8))):
        journal = Journal(tmp_path, active=True)
        with journal.open(*position):
            for step in steps:
                journal.event({"task": 0, "step": step, "loss": float(step)}, step + 1)
        time.sleep(1.1)  # the files are named by the second
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [e.step for e in reader.Scalars("train/loss")] == list(range(1, 9))


def test_only_the_first_rank_writes(tmp_path):
    journal = Journal(tmp_path, active=False)
    with journal.open(task=0, step=0, global_step=0):
        journal.event({"task": 0, "step": 0}, global_step=0)
        journal.say("nothing")
        journal.progress("nothing", 1, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_meter_tells_rate_and_waiting(monkeypatch):
    clock = iter([0.0, 10.0, 13.0, 20.0, 20.0])
    monkeypatch.setattr("kaizen_dist.journal.time.monotonic", lambda: next(clock))
    meter = StepMeter()
    with meter.waiting():
        pass
    meter.images += 400
    assert meter.read() == (20.0, 0.15, 20.0)
