"""A run that follows its stream: a watcher looks from time to time whether new tasks have come.

A watcher is a job of one core and some seconds. First it queues the next one, which may start
`follow` seconds later and after this one has ended: whatever ends a watcher, the next one looks,
and never do two at once. Then it reads stream.json. Where that has tasks which the run has not
learnt it submits the run's training, unless that is in the queue; where no more is to be learnt it
ends the following; else it changes no byte of the run's folder.

Whether a run is followed is written in the attempt log, from `followed` to `stopped`. Watchers are
recognised by their working directory, RUN/slurm.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.formatting import plural
from kaizen_dist.launch import slurm, submission
from kaizen_dist.launch.attempt import position
from kaizen_dist.launch.attempts import (
    AttemptLog,
    AttemptRow,
    Ended,
    Followed,
    Position,
    Stopped,
    followed,
    now,
    stop_reason,
)
from kaizen_dist.launch.job import SubmittedRun, watchers
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream, load_manifest
from kaizen_dist.stream.remote import Remote, is_url

_MODULE = "kaizen_dist.launch.following"
_MINUTES = 10
_MEMORY = "1G"
_PAUSES = (20.0, 120.0)
"""Seconds before a look that failed is tried again; one that has queued the next watcher leaves the
rest to it."""


def begin(job: SubmittedRun) -> str:
    """Queue the first watcher of a run, which follows its stream from here on; its number.

    Raises:
        KaizenError: if the cluster refuses.
        WriteError: if RUN/slurm cannot be written.
    """
    number = _queue(job)
    AttemptLog(job.root).append(Followed(job=number, time=now()))
    return number


def check(job: SubmittedRun) -> None:
    """That the cluster would take a watcher of this run. Raises KaizenError."""
    slurm.ask("sbatch", "--test-only", *_options(job), given=_script(job))


def look(root: Path, number: str) -> None:
    """The work of a watcher: look once; `number` is its own.

    Raises:
        KaizenError: if something cannot be read, or Slurm refuses; the next watcher tries again.
    """
    job, log = SubmittedRun.read(root), AttemptLog(root)
    # The queue first: what has left it has written its end.
    queue, rows = submission.running(root), log.rows()
    if followed(rows) is None:
        _say_why(next((row.reason for row in reversed(rows) if isinstance(row, Stopped)), ""))
        return
    watching = {other.id for other in watchers(root, queue)}
    if any(int(other) > int(number) for other in watching):
        return  # a node was lost, and this one requeued: the next one is there already
    successor = _queue(job, after=number)
    if any(other.id not in watching for other in queue):
        return
    results = read_results(root)
    learnt = 0 if results is None else len(results.accuracy)
    stream = at_a_glance(job.stream)
    reason = end_reason(job, rows, position(root), learnt) or another_stream(stream, results)
    if reason is not None:
        log.append(Stopped(job=number, time=now(), reason=reason))
        slurm.ask("scancel", successor)
        _say_why(reason)
        return
    job = job.model_copy(update={"tasks": len(stream)})
    if job.to_learn > learnt:
        job.save()
        numbers = submission.submit(job, submission.tasks_of(job, learnt))
        came = plural(job.to_learn - learnt, "new task")
        _say(f"{came} to learn: submitted {', '.join(numbers)}")


def end_reason(
    job: SubmittedRun, rows: Sequence[AttemptRow], at: Position, learnt: int
) -> str | None:
    """Why a followed run of which nothing is in the queue is to learn no more; None where it may.

    Args:
        rows: of its attempt log.
        at: (task, step) of its newest checkpoint.
        learnt: how many tasks it has learnt.
    """
    if job.until is not None and learnt >= job.until:
        return f"{plural(learnt, 'task')} learnt, as asked for"
    if stop := stop_reason(rows, at, job.resources.retries):
        return stop
    last = rows[-1]
    if isinstance(last, Followed) or (isinstance(last, Ended) and last.code == 0):
        return None
    return f"job {last.job}, the last one that was to train, has not ended well"


def another_stream(stream: Stream, results: Results | None) -> str | None:
    """Why a run cannot learn from a stream any more; None if it can."""
    if results is None or stream.begins_with(results.stream.fingerprint, results.stream.tasks):
        return None
    return f"{stream.place} is another stream than the one that was learnt"


def at_a_glance(place: str) -> Stream:
    """The stream in a folder or at a URL as it is now, by its manifest alone. Raises DataError."""
    root = Remote(place) if is_url(place) else Path(place)
    return Stream(root, load_manifest(root), ())


def _queue(job: SubmittedRun, after: str | None = None) -> str:
    """Queue a watcher that looks in `job.follow` seconds, and after another one; its number."""
    dependency = [] if after is None else [f"--dependency=afterany:{after}"]
    command = ["sbatch", "--parsable", *_options(job), *dependency]
    with submission.outside_a_job():
        return slurm.ask(*command, given=_script(job)).strip().split(";")[0]


def _options(job: SubmittedRun) -> list[str]:
    """sbatch's, as words. What says which nodes have GPUs is left out."""
    asked = job.resources
    given = {
        "job-name": f"kaizen-{job.root.name}-follow",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": 1,
        "mem": _MEMORY,
        "time": _MINUTES,
        "begin": f"now+{job.follow}",
        "partition": asked.follow_partition or asked.partition,
        "account": asked.account,
        # Of a partition, often.
        "qos": None if asked.follow_partition else asked.qos,
        "exclude": ",".join(asked.exclude),
        "chdir": job.folder,
        # Opened to append: what says nothing leaves it as it is.
        "output": job.follow_log,
        "open-mode": "append",
    }
    return ["--requeue", *(f"--{name}={value}" for name, value in given.items() if value)]


def _script(job: SubmittedRun) -> str:
    command = f"exec {quote(job.python)} -m {_MODULE} {quote(str(job.root))}"
    # Python imports the package from where it is started.
    return "\n".join(
        ["#!/bin/bash", *job.resources.setup, f"cd {quote(str(job.code))}", command, ""]
    )


def _say_why(reason: str) -> None:
    _say(
        f"this run follows its stream no longer: {reason}; `kaizen-dist logs` shows what its jobs "
        "have said, and `kaizen-dist submit --follow` takes it up again"
    )


def _say(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), one_line(line), flush=True)


def _main(root: Path, number: str) -> int:
    code = 0
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        try:
            look(root, number)
        except KaizenError as error:
            _say(f"could not look for new tasks: {error}")
            code = error.exit_code
        else:
            break
    return code


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), os.environ["SLURM_JOB_ID"]))
