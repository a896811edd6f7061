"""Whether the GPU gets done what it is given.

A collective over NCCL only queues work; the host learns nothing of a peer that does not take part,
and NCCL's own watchdog would abort the process with a native stack. So ours looks: it puts a mark
at the end of the queue now and then, and one that is not reached in time tells.
"""

import time

import torch


class Pace:
    """Of one rank; `device` is the CPU, which queues nothing, until another is set."""

    def __init__(self, rank: int, seconds: float) -> None:
        self.device = torch.device("cpu")
        self._rank, self._seconds = rank, seconds
        self._mark: torch.cuda.Event | None = None
        self._since = 0.0

    def stuck(self) -> str | None:
        """Why the run is to end, if what was queued `seconds` ago is not done. To be asked every
        few seconds, from any one thread."""
        if self.device.type != "cuda":
            return None
        if self._mark is None or self._mark.query():
            self._mark, self._since = torch.cuda.Event(), time.monotonic()
            # Work on other streams is waited for in this one.
            self._mark.record(torch.cuda.default_stream(self.device))
            return None
        if time.monotonic() - self._since <= self._seconds:
            return None
        return (
            f"the GPU of rank {self._rank} has not done in {self._seconds:g} s what it was given: "
            "a rank or the network does not answer it, or it hangs"
        )
