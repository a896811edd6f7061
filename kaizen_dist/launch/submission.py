"""The jobs of a run, put into the queue through submitit.

One job trains the whole stream, or (a chain) one job a task, each waiting for the one before.
Every job has a guard, a job of one core that runs only if the other fails and then decides
whether there is another attempt (guard.py). Whoever submits, a person or a guard, does it here.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.common.run_layout import SLURM
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempt import Attempt
from kaizen_dist.launch.attempts import Ledger, Submitted, now, queued
from kaizen_dist.launch.job import Job, code_of
from kaizen_dist.launch.resources import Resources
from kaizen_dist.launch.retry import Guard
from kaizen_dist.launch.status import find_runs

_GUARD_MINUTES = 10


def links(job: Job, first: int = 0) -> list[int | None]:
    """What the jobs of a run train: tasks from `first` on, each by its own job; [None] = all."""
    return list(range(first, job.tasks)) if job.chain else [None]


def submit(job: Job, tasks: Sequence[int | None], exclude: Sequence[str] = ()) -> list[str]:
    """Queue a job for each of `tasks` in turn, with its guard; the numbers of the jobs.

    Nodes in `exclude` are left out, beside those the profile leaves out.

    Raises:
        KaizenError: if the cluster refuses.
    """
    numbers: list[str] = []
    for task in tasks:
        after = numbers[-1] if numbers else None
        number = submit_one(job, Attempt(str(job.root), task), attempt_options(job, exclude, after))
        guard = submit_one(job, Guard(str(job.root), number), guard_options(job, number))
        numbers.append(number)
        _note(job, number, task, exclude, guard)
    return numbers


def _note(job: Job, number: str, task: int | None, exclude: Sequence[str], guard: str) -> None:
    row = Submitted(
        job=number,
        time=now(),
        nodes=job.resources.nodes,
        ranks_per_node=job.resources.ranks,
        task=task,
        exclude=list(exclude),
        guard=guard,
    )
    Ledger(job.folder).append(row)


def submit_array(jobs: Sequence[Job]) -> list[str]:
    """Queue several runs, which ask for the same, as one array with a guard each; their numbers.

    Raises:
        KaizenError: if the cluster refuses.
    """
    executor = _executor(jobs[0], attempt_options(jobs[0], (), None))
    with _outside_of_a_job(), _refusals():
        with executor.batch():
            queued = [executor.submit(Attempt(str(job.root), None)) for job in jobs]
        numbers = [str(one.job_id) for one in queued]
    for job, number in zip(jobs, numbers, strict=True):
        guard = submit_one(job, Guard(str(job.root), number), guard_options(job, number))
        _note(job, number, None, (), guard)
    return numbers


def script(job: Job, options: dict[str, Any] | None = None) -> str:
    """The batch script of a job with these options (None: of the first that trains), as sbatch
    would get it."""
    executor = _executor(job, options or attempt_options(job, (), None))
    return str(executor._make_submission_file_text(executor._submitit_command_str, "JOB"))


def attempt_options(job: Job, exclude: Iterable[str], after: str | None) -> dict[str, Any]:
    """submitit's parameters for a job that trains, after another one has ended well."""
    asked = job.resources
    options = _options(asked, exclude) | {
        "job_name": f"kaizen-{job.root.name}",
        "nodes": asked.nodes,
        "ntasks_per_node": asked.ranks,
        "cpus_per_task": asked.cpus_per_task,
        "time": asked.minutes,
        "signal_delay_s": asked.signal_seconds,
        "additional_parameters": _always(job) | asked.sbatch,
    }
    if asked.gpus_per_node:
        options["gpus_per_node"] = asked.gpus_per_node
    if asked.mem:
        options["mem"] = asked.mem
    if after is not None:
        options["dependency"] = f"afterok:{after}"
    return options


def measuring_options(job: Job) -> dict[str, Any]:
    """submitit's parameters for a job that measures: on nodes that it has for itself."""
    options = attempt_options(job, (), None)
    options["additional_parameters"] = {"exclusive": True} | options["additional_parameters"]
    return options


def guard_options(job: Job, number: str) -> dict[str, Any]:
    """submitit's parameters for the guard of a job."""
    return _options(job.resources, ()) | {
        "job_name": f"kaizen-{job.root.name}-guard",
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "time": _GUARD_MINUTES,
        "dependency": f"afternotok:{number}",
        "additional_parameters": _always(job),
    }


def _always(job: Job) -> dict[str, Any]:
    """Options of sbatch that submitit has no names for."""
    return {
        "requeue": True,
        # Links after one that failed leave the queue by themselves; so does the guard of a job
        # that ended well.
        "kill-on-invalid-dep": "yes",
        # Python looks for modules where it is started, before it looks anywhere else.
        "chdir": str(job.code),
    }


def _options(asked: Resources, exclude: Iterable[str]) -> dict[str, Any]:
    """What a job and its guard have in common."""
    named = {
        name: value
        for name in ("partition", "account", "qos", "constraint")
        if (value := getattr(asked, name)) is not None
    }
    left_out = list(dict.fromkeys([*asked.exclude, *exclude]))
    return named | ({"exclude": ",".join(left_out)} if left_out else {})


def _executor(job: Job, options: dict[str, Any]) -> Any:
    """submitit's, for this job: a process in the batch shell itself, not one a task."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise UsageError("submitit is not installed: pip install 'kaizen-dist[slurm]'") from None
    executor = SlurmExecutor(folder=job.logs, python=shlex.quote(job.python))
    executor.update_parameters(**options, use_srun=False, setup=list(job.resources.setup))
    return executor


def submit_one(job: Job, work: Callable[[], str], options: dict[str, Any]) -> str:
    """Queue one job that calls `work`, which is plain data; its number.

    Raises:
        KaizenError: if the cluster refuses.
    """
    with _outside_of_a_job(), _refusals():
        return str(_executor(job, options).submit(work).job_id)


@contextmanager
def _refusals() -> Iterator[None]:
    """What sbatch says against a job, as an error of ours."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise KaizenError(f"the cluster refuses the job: {error}") from error


@contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Without the variables of the job that submits: sbatch would take them for its options."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
    }
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ |= inherited


def running(*roots: Path) -> list[slurm.Job]:
    """Jobs of these runs that wait in the queue or run.

    They are known by where they work, not by a run's own files, which could name others. Only of an
    array's, which all work in the first one's folder, the number counts too.

    Raises:
        DataError: if a ledger cannot be read, and there are arrays.
    """
    alive = [job for job in slurm.jobs().values() if not job.over]
    places, members = {str(code_of(root)) for root in roots}, dict[str, Path]()
    if any(job.in_array for job in alive):
        rows = {root: Ledger(root / SLURM).rows() for root in roots}
        members = {number: root.parent for root in roots for number in queued(rows[root])}
    beside = {job.id: Path(job.folder).parent.parent.parent for job in alive if job.in_array}
    return [
        job
        for job in alive
        if (members.get(job.id) == beside[job.id] if job.in_array else job.folder in places)
    ]


def cancel(folder: Path) -> list[str]:
    """Take all jobs of a run, or of every submitted run beneath a folder, out of the queue; the
    numbers of those that were there.

    Raises:
        DataError: if there is no run, or none that was ever submitted.
    """
    roots = [root.resolve() for root in find_runs(folder) if Job.is_in(root)]
    if not roots:
        raise DataError(f"{folder}: no run in it was submitted; there is nothing to cancel")
    numbers = [job.id for job in running(*roots)]
    slurm.cancel(numbers)
    return numbers
