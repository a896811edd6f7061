"""Whether the GPU gets done what it is given.

A collective over NCCL only queues work; the host learns nothing of a peer that does not take part,
and NCCL's own watchdog would abort the process with a native stack. So a thread of ours puts a mark
at the end of the queue now and then and waits for it. It may wait for good; whoever asks does not.
"""

import threading
import time

import torch

_PAUSE_SECONDS = 1.0


class Pace:
    """Of one rank."""

    def __init__(self, rank: int, seconds: float) -> None:
        self._rank, self._seconds = rank, seconds
        self._reached: float | None = None
        """When the last mark was reached; None where nothing is watched."""

    def watch(self, device: torch.device) -> None:
        """Begin to; a CPU queues nothing."""
        if device.type == "cuda":
            self._reached = time.monotonic()
            threading.Thread(target=self._follow, args=(device,), name="pace", daemon=True).start()

    def stuck(self) -> str | None:
        """Why the run is to end, if no mark has been reached for `seconds`."""
        if self._reached is None or time.monotonic() - self._reached <= self._seconds:
            return None
        return (
            f"the GPU of rank {self._rank} has not done in {self._seconds:g} s what it was given: "
            "a rank or the network does not answer it, or it hangs"
        )

    def _follow(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        while True:
            mark = torch.cuda.Event(blocking=True)
            # Work on other streams is waited for in this one.
            mark.record(torch.cuda.default_stream(device))
            mark.synchronize()
            self._reached = time.monotonic()
            time.sleep(_PAUSE_SECONDS)
