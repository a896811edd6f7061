"""Threads beside the one that trains: how they begin, and what several of them make once."""

from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


def beginning(device: torch.device) -> Callable[[], None]:
    """What a thread that this one starts has to do first, to work for `device` beside others.

    By itself a thread works on the first GPU, whichever its rank has, and takes as many cores for
    an operation as the rank has for all of them. Afterwards it is on `device`, and takes one.
    """
    # At a thread's first operation torch gives it the number of cores that any thread has asked
    # for last: this thread's is settled here.
    torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(1)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    return begin


class once(Generic[T]):
    """A property that is made when it is first asked for, once for all threads.

    `functools.cached_property` takes no lock since Python 3.12: all threads that ask before it is
    there make one each.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._lock = make, RLock()

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        # Once it is in the object's own dictionary, Python finds it there and does not come here.
        with self._lock:
            made = vars(instance)
            if self._name not in made:
                made[self._name] = self._make(instance)
            value: T = made[self._name]
            return value
