import multiprocessing
import os
import signal
import time

import pytest

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.stream.pool import run_jobs


def add(common, job, tick):
    tick(job)
    return common + job


def die(common, job, tick):
    if job == common:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail(common, job, tick):
    raise DataError(f"job {job}")


def work_for_ever(common, job, tick):
    while True:
        tick(1)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_gives_its_result_and_its_ticks(workers):
    ticks = []
    results = list(run_jobs(add, 10, [1, 2, 3], workers, ticks.append))
    assert sorted(results) == [11, 12, 13]
    assert sum(ticks) == 6


def meet(folder, job, tick):
    """Done once three jobs have begun: never, where fewer than three are worked on at a time."""
    (folder / str(job)).write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 3:
        assert time.monotonic() < deadline, "one waits for another to finish"
        time.sleep(0.02)
    return os.getpid()


def test_all_workers_are_busy_at_the_same_time(tmp_path):
    processes = list(run_jobs(meet, tmp_path, [0, 1, 2], 3, lambda _: None))
    assert len({*processes, os.getpid()}) == 4


def test_a_dead_worker_is_an_error_with_a_cure():
    with pytest.raises(KaizenError, match="fewer --workers"):
        list(run_jobs(die, 2, [1, 2, 3], 2, print))


def test_an_error_in_a_worker_is_raised_as_it_was():
    with pytest.raises(DataError, match="job"):
        list(run_jobs(fail, None, [1, 2, 3], 2, print))


def test_an_interrupt_stops_the_workers_in_mid_job():
    def interrupt(count):
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(work_for_ever, None, [1, 2], 2, interrupt))
    assert not multiprocessing.active_children()
