"""Independent jobs over several processes, for `prepare` and `verify`.

One worker runs in this very process. Several are spawned, not forked, so that they inherit none of
the parent's threads; they report every image, and stop within one image when the parent fails, is
interrupted or dies.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, TypeAlias, TypeVar

from kaizen_dist.common.errors import KaizenError

Common = TypeVar("Common")
Job = TypeVar("Job")
Result = TypeVar("Result")
Tick: TypeAlias = Callable[[int], None]
"""Called by a job with the number of images it has just finished."""
Work: TypeAlias = Callable[[Common, Job, Tick], Result]

_POLL_SECONDS = 0.5
_worker: "tuple[Any, Event, Synchronized[int]]"
"""In a worker process: what all jobs share, the signal to stop, and images finished by all."""


def run_jobs(
    work: Work[Common, Job, Result], common: Common, jobs: Sequence[Job], workers: int, tick: Tick
) -> Iterator[Result]:
    """Yields `work(common, job, tick)` for every job, in the order in which they finish.

    With several workers, `work` must be a module's function and the rest picklable. A job's
    exception is raised here and stops the others. Raises KaizenError when a worker dies.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield work(common, job, tick)
        return
    context = multiprocessing.get_context("spawn")
    shared = (common, context.Event(), context.Value("Q", 0))
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin_worker, shared)
    try:
        pending = {pool.submit(_in_worker, work, job) for job in jobs}
        shown = 0
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            finished = shared[2].value
            tick(finished - shown)
            shown = finished
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise KaizenError(
            "a worker process died (killed, perhaps for want of memory): run the same command "
            "again, with fewer --workers if it happens twice; what is finished is kept"
        ) from None
    finally:
        shared[1].set()
        pool.shutdown(wait=True, cancel_futures=True)


class _StoppedError(Exception):
    """The parent no longer wants this job's result."""


def _begin_worker(*shared: Any) -> None:
    global _worker
    _worker = shared
    # Ctrl-C reaches the whole process group: the parent alone decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(work: Work[Any, Job, Result], job: Job) -> Result:
    return work(_worker[0], job, _tick_from_worker)


def _tick_from_worker(count: int) -> None:
    _, stop, finished = _worker
    with finished.get_lock():
        finished.value += count
    if stop.is_set():
        raise _StoppedError
