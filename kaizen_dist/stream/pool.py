"""Independent jobs over several processes, in one place for `prepare` and `verify`.

In come a function, what all its calls share, and the jobs; out come the results as they are
done. One worker runs in this very process. The workers are spawned, not forked, so that they
are clean of the parent's threads; they tick for every image, and stop within one image when
the parent fails, is interrupted or dies.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple, TypeAlias, TypeVar

from kaizen_dist.common.errors import KaizenError

Common = TypeVar("Common")
Job = TypeVar("Job")
Result = TypeVar("Result")
Tick: TypeAlias = Callable[[int], None]
"""Called by a job with the number of images it has just finished."""

_POLL_SECONDS = 0.5


def run_jobs(
    work: Callable[[Common, Job, Tick], Result],
    common: Common,
    jobs: Sequence[Job],
    workers: int,
    tick: Tick,
) -> Iterator[Result]:
    """Yields `work(common, job, tick)` for every job, in the order in which they finish.

    With several workers, `work` must be a module's function and the rest picklable. A job's
    exception is raised here and stops the others. Raises KaizenError when a worker dies.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield work(common, job, tick)
    else:
        yield from _run_in_processes(work, common, jobs, min(workers, len(jobs)), tick)


def _run_in_processes(
    work: Callable[[Common, Job, Tick], Result],
    common: Common,
    jobs: Sequence[Job],
    workers: int,
    tick: Tick,
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    stop, ticks = context.Event(), context.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (common, stop, ticks))
    try:
        pending = {pool.submit(_in_worker, work, job) for job in jobs}
        shown = 0
        while pending:
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            counted = ticks.value
            tick(counted - shown)
            shown = counted
            yield from _results(done)
    except BrokenProcessPool:
        raise KaizenError(
            "a worker process died (killed, perhaps for want of memory): run the same command "
            "again, with fewer --workers if it happens twice; what is finished is kept"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _results(done: set[Future[Result]]) -> Iterator[Result]:
    for future in done:
        yield future.result()


class _Worker(NamedTuple):
    common: Any
    stop: Event
    ticks: "Synchronized[int]"


_worker: _Worker


class _StoppedError(Exception):
    """The parent no longer wants this job's result."""


def _begin_worker(common: object, stop: Event, ticks: "Synchronized[int]") -> None:
    global _worker
    _worker = _Worker(common, stop, ticks)
    # Ctrl-C reaches the whole process group: the parent alone decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool's worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(work: Callable[[Any, Job, Tick], Result], job: Job) -> Result:
    return work(_worker.common, job, _tick_from_worker)


def _tick_from_worker(count: int) -> None:
    with _worker.ticks.get_lock():
        _worker.ticks.value += count
    if _worker.stop.is_set():
        raise _StoppedError
