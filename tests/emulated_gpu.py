"""A GPU's sense of time, where there is none: work is queued at once and done one after the other.

Only what tells or takes time is emulated, so that what is measured can be worked out by hand.
"""

import time
from types import SimpleNamespace

import pytest
import torch

CUDA = torch.device("cuda", 0)


class EmulatedGpu:
    """Host and device, by the clocks of this process; all times are whole seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.done_at = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: object = None) -> None:
                self.at = gpu.done_at = max(gpu.now, gpu.done_at)

            def query(self) -> bool:
                return self.at <= gpu.now

            def synchronize(self) -> None:
                gpu.now = max(gpu.now, self.at)

            def elapsed_time(self, later: "Event") -> float:
                assert later.query(), "torch would raise"
                return 1000 * (later.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: self.synchronize())
        for clock in ("monotonic", "perf_counter", "process_time"):
            monkeypatch.setattr(time, clock, lambda: self.now)

    def host(self, seconds: float) -> None:
        """The host does something, or waits for it."""
        self.now += seconds

    def queue(self, seconds: float) -> None:
        """The device is given more work."""
        self.done_at = max(self.now, self.done_at) + seconds

    def report(self, *_: object) -> dict[str, float]:
        """In place of reading a step's losses: it waits for the device, and is slow."""
        self.synchronize()
        self.host(100)
        return {}

    def synchronize(self) -> None:
        self.now = max(self.now, self.done_at)
