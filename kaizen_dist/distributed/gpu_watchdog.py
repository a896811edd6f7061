"""Whether the GPU finishes the work in its queue.

A NCCL collective only queues work; the host does not notice a peer that takes no part, and NCCL's
own watchdog would abort the process with a native stack trace. So a thread records an event at the
end of the queue periodically and waits for it. It may wait for ever; whoever asks does not.
"""

import threading
import time

import torch

_PAUSE_SECONDS = 1.0


class GpuWatchdog:
    """Watches one rank's GPU; `seconds` is the time in which queued work must finish."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank, self._seconds = rank, seconds
        self._reached: float | None = None
        """When the last event was reached; None if nothing is watched."""

    def watch(self, device: torch.device) -> None:
        """Start watching; a CPU has no queue."""
        if device.type == "cuda":
            self._reached = time.monotonic()
            name = "gpu watchdog"
            threading.Thread(target=self._follow, args=(device,), name=name, daemon=True).start()

    def stuck(self) -> str | None:
        """Why the run has to end, if no event has been reached for `seconds`."""
        if self._reached is None or time.monotonic() - self._reached <= self._seconds:
            return None
        return (
            f"the GPU of rank {self._rank} has not finished its queued work within "
            f"{self._seconds:g} s: a rank or the network does not answer it, or it hangs"
        )

    def _follow(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        while True:
            event = torch.cuda.Event(blocking=True)
            # The default stream waits for work on other streams.
            event.record(torch.cuda.default_stream(device))
            event.synchronize()
            self._reached = time.monotonic()
            time.sleep(_PAUSE_SECONDS)
