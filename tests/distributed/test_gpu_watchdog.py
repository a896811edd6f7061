"""A GPU that does not get on is told of; here by an emulation of its queue."""

import threading
import time

import pytest
import torch

from kaizen_dist.distributed import gpu_watchdog as module
from kaizen_dist.distributed.gpu_watchdog import GpuWatchdog

GPU = torch.device("cuda", 0)

# The emulation ends the thread by an exception, for it would go on for ever.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def queue(monkeypatch):
    """Whether what is given to a GPU gets done; the host hears of it as from CUDA."""
    moves, over = threading.Event(), threading.Event()
    moves.set()

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "a thread that waits would keep a core busy"

        def record(self, stream: object) -> None:
            pass

        def synchronize(self) -> None:
            moves.wait(60)
            if over.is_set():
                raise SystemExit

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)
    yield moves
    over.set()
    moves.set()
    for thread in threading.enumerate():
        if thread.name == "gpu watchdog":
            thread.join(60)


def told(watchdog: GpuWatchdog, seconds: float = 60) -> str | None:
    """What it says within so long, asked again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if said := watchdog.stuck():
            return said
        time.sleep(0.01)
    return None


def test_a_queue_that_does_not_move_is_told_and_nobody_who_asks_waits_for_it(queue):
    watchdog = GpuWatchdog(3, 0.2)
    queue.clear()
    watchdog.watch(GPU)
    assert watchdog.stuck() is None
    assert "the GPU of rank 3 has not finished its queued work within 0.2 s" in str(told(watchdog))


def test_a_queue_that_moves_is_not(queue):
    watchdog = GpuWatchdog(0, 30)
    watchdog.watch(GPU)
    assert told(watchdog, seconds=0.5) is None


def test_a_cpu_has_no_queue():
    watchdog = GpuWatchdog(0, 0.0)
    watchdog.watch(torch.device("cpu"))
    assert watchdog.stuck() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_real_queue():
    watchdog = GpuWatchdog(0, 0.3)
    torch.cuda.synchronize()
    watchdog.watch(GPU)
    torch.cuda._sleep(4_000_000_000)  # two seconds or so
    assert "has not finished its queued work within 0.3 s" in str(told(watchdog, seconds=2))
    torch.cuda.synchronize()
    time.sleep(0.2)
    assert watchdog.stuck() is None
