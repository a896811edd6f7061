"""Threads beside the training thread: set-up, values built once, and calls with a time-out."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import RLock, Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def thread_setup(device: "torch.device") -> Callable[[], None]:
    """A function that a new thread calls first, to work for `device` beside other threads.

    By default a thread uses the first GPU, whichever its rank has, and as many cores for an
    operation as the rank has for all of them. Afterwards it uses `device` and one core.
    """
    import torch

    # At a thread's first operation torch gives it the number of cores that any thread has set
    # last: this thread's number is fixed here.
    torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(1)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    return begin


def run_in_thread(name: str, work: Callable[[], T]) -> Future[T]:
    """The result of `work` on a daemon thread, which the end of the process does not wait for (as
    it does for the threads of an executor)."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises.

    Raises:
        TimeoutError: if it takes longer; its thread is then left running.
    """
    future = run_in_thread("within", work)
    wait([future], seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


class once(Generic[T]):
    """A property that is computed at its first use, once for all threads.

    (`functools.cached_property` has no lock since Python 3.12: every thread that asks before the
    value is stored computes its own.)
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._lock = make, RLock()

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        # Once the value is in the object's own dictionary, Python does not come here.
        with self._lock:
            made = vars(instance)
            if self._name not in made:
                made[self._name] = self._make(instance)
            value: T = made[self._name]
            return value
