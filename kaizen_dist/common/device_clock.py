"""Times on a device, between which its work can be measured.

Work is queued on a GPU faster than it is done. There a moment is an event in the queue of a stream,
reached when all work queued before is done; recording it does not wait. On a CPU it is now.
"""

import time
from typing import Any, TypeAlias

import torch

Moment: TypeAlias = Any
"""A torch.cuda.Event, or seconds."""


def moment(device: torch.device, stream: torch.cuda.Stream | None = None) -> Moment:
    """The end of the work queued on a device so far (on the current stream, or another)."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event


def seconds_between(since: Moment, until: Moment) -> float:
    """Seconds of the device, which must have reached both."""
    if isinstance(since, float):
        return float(until - since)
    return float(since.elapsed_time(until)) / 1000


def reach(asked: Moment) -> None:
    """Wait until the device has reached a moment."""
    if not isinstance(asked, float):
        asked.synchronize()


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all queued work; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
