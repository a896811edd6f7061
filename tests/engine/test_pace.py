"""A GPU that does not get on is told of; here by an emulation of its queue."""

import time

import pytest
import torch

from kaizen_dist.engine.pace import Pace


class Queue:
    """What `torch.cuda` says of a queue whose marks are reached when we say so."""

    def __init__(self, monkeypatch) -> None:
        self.done = True
        self.now = 0.0
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def record(self, stream) -> None:
        pass

    def query(self) -> bool:
        return self.done


def on_a_gpu(seconds: float) -> Pace:
    pace = Pace(3, seconds)
    pace.device = torch.device("cuda", 0)
    return pace


def test_a_queue_that_does_not_move_is_told_after_the_limit(monkeypatch):
    queue, pace = Queue(monkeypatch), on_a_gpu(10)
    assert pace.stuck() is None
    queue.done, queue.now = False, 9.0
    assert pace.stuck() is None
    queue.now = 11.0
    assert "the GPU of rank 3 has not done in 10 s" in str(pace.stuck())


def test_a_queue_that_moves_is_not(monkeypatch):
    queue, pace = Queue(monkeypatch), on_a_gpu(10)
    for now in range(0, 100, 8):
        queue.now = now
        assert pace.stuck() is None
    # The last mark is new, whatever was before it.
    queue.done, queue.now = False, queue.now + 9
    assert pace.stuck() is None


def test_a_cpu_has_no_queue():
    pace = Pace(0, 0.0)
    assert pace.stuck() is pace.stuck() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_real_queue():
    pace = on_a_gpu(0.2)
    torch.cuda.synchronize()
    assert pace.stuck() is None
    torch.cuda._sleep(2_000_000_000)  # a second or so
    assert pace.stuck() is None  # the mark before was reached; this one comes after the sleep
    time.sleep(0.4)
    assert "has not done in 0.2 s" in str(pace.stuck())
    torch.cuda.synchronize()
    assert pace.stuck() is None
