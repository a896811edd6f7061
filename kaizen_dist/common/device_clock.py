"""Points in the time of a device: what lies between two of them is what its work took.

A GPU is given work faster than it does it. There a moment is a mark in the queue of a stream, which
passes it when all that was queued before is done; nobody waits for that. On a CPU it is now.
"""

import time
from typing import Any, TypeAlias

import torch

Moment: TypeAlias = Any
"""A torch.cuda.Event, or seconds."""


def moment(device: torch.device, stream: torch.cuda.Stream | None = None) -> Moment:
    """The end of what has been given to a device so far (on the current stream, or another)."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event


def seconds_between(since: Moment, until: Moment) -> float:
    """Of the device; it must have passed both."""
    if isinstance(since, float):
        return float(until - since)
    return float(since.elapsed_time(until)) / 1000


def reach(asked: Moment) -> None:
    """Wait until the device has passed a moment."""
    if not isinstance(asked, float):
        asked.synchronize()


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
