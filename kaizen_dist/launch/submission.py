"""The jobs of a run: queued through submitit, submitted again when they fail, cancelled.

One job trains the whole stream; with --chain one job a task, each after the one before. Every job
has a retry job of one core that starts only if the other fails, wherever Slurm places it: it is
there when the batch shell, or its node, is not. It reads the attempt log and the newest checkpoint,
and either submits the job again (with the rest of its chain), without the nodes that have failed,
or records why not.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.common.run_layout import SLURM
from kaizen_dist.launch import slurm
from kaizen_dist.launch.attempt import Attempt, position
from kaizen_dist.launch.attempts import (
    AttemptLog,
    Began,
    Stopped,
    Submitted,
    bad_nodes,
    followed,
    now,
    stop_reason,
)
from kaizen_dist.launch.job import FILE, SubmittedRun
from kaizen_dist.launch.status import find_runs

_RETRY_MINUTES = 10


def tasks_of(job: SubmittedRun, first: int = 0) -> list[int | None]:
    """The tasks of a run's jobs: in a chain every one from `first` on, else [None] = all in one."""
    return list(range(first, job.to_learn)) if job.chain else [None]


def submit(
    job: SubmittedRun, tasks: Sequence[int | None], exclude: Sequence[str] = ()
) -> list[str]:
    """Queue a job for each of `tasks` in turn, with its retry job; the numbers of the jobs.

    Nodes in `exclude` are left out, beside those the profile leaves out.

    Raises:
        KaizenError: if the cluster refuses.
    """
    numbers: list[str] = []
    for task in tasks:
        options = attempt_options(job, exclude, numbers[-1] if numbers else None)
        number = submit_one(job, Attempt(str(job.root), task), options)
        retry = submit_one(job, RetryJob(str(job.root), number), retry_options(job, number))
        row = Submitted(
            job=number,
            time=now(),
            nodes=job.resources.nodes,
            ranks_per_node=job.resources.ranks,
            task=task,
            exclude=list(exclude),
            guard=retry,
        )
        AttemptLog(job.root).append(row)
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class RetryJob:
    """The work of a retry job. submitit pickles it: plain data."""

    root: str
    """The run's folder."""
    number: str
    """The job that has failed."""

    def __call__(self) -> str:
        """Submit again, or stop; a line that says which."""
        job = SubmittedRun.read(Path(self.root))
        log = AttemptLog(job.root)
        rows = log.rows()
        if not any(isinstance(row, Began) and row.job == self.number for row in rows):
            return f"job {self.number} never began: it was taken out of the queue"
        if isinstance(rows[-1], Stopped):
            return f"stopped: {rows[-1].reason}"
        found = slurm.jobs().get(self.number)
        stop = stop_reason(rows, position(job.root), job.resources.retries)
        if found is not None and found.state == "CANCELLED":
            stop = f"job {self.number} was cancelled"
        if stop is not None:
            log.append(Stopped(job=os.environ["SLURM_JOB_ID"], time=now(), reason=stop))
            return f"stopped: {stop}"
        submitted = (row for row in rows if isinstance(row, Submitted))
        task = next(row.task for row in submitted if row.job == self.number)
        exclude = excludable(job, bad_nodes(rows))
        again = submit(job, [None] if task is None else tasks_of(job, task), exclude)
        return f"submitted again: {', '.join(again)}, without {', '.join(exclude) or 'no node'}"


def excludable(job: SubmittedRun, failed: Sequence[str]) -> list[str]:
    """Of the nodes that have failed the latest ones, as many as the partition can do without."""
    names = slurm.partition(job.resources.partition).nodes
    up = {node.name for node in slurm.nodes(names) if node.usable}
    spare = len(up - set(job.resources.exclude)) - job.resources.nodes
    chosen: list[str] = []
    for name in reversed(failed):
        spare -= name in up
        if spare < 0:
            break
        chosen.append(name)
    return chosen[::-1]


def script(job: SubmittedRun, options: dict[str, Any]) -> str:
    """The batch script of a job with these options, as sbatch would get it."""
    executor = _executor(job, options)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "JOB"))


def attempt_options(
    job: SubmittedRun, exclude: Iterable[str] = (), after: str | None = None
) -> dict[str, Any]:
    """submitit's parameters for a job that trains, after another one has ended well."""
    asked = job.resources
    return _options(
        job,
        [*asked.exclude, *exclude],
        asked.sbatch,
        job_name=f"kaizen-{job.root.name}",
        nodes=asked.nodes,
        ntasks_per_node=asked.ranks,
        cpus_per_task=asked.cpus_per_task,
        gpus_per_node=asked.gpus_per_node,
        mem=asked.mem,
        time=asked.minutes,
        signal_delay_s=asked.signal_seconds,
        dependency=after and f"afterok:{after}",
    )


def measuring_options(job: SubmittedRun) -> dict[str, Any]:
    """submitit's parameters for a benchmark job: it has its nodes to itself."""
    options = attempt_options(job)
    options["additional_parameters"] = {"exclusive": True} | options["additional_parameters"]
    return options


def retry_options(job: SubmittedRun, number: str) -> dict[str, Any]:
    """submitit's parameters for the retry job of a job."""
    return _options(
        job,
        job.resources.exclude,
        {},
        job_name=f"kaizen-{job.root.name}-retry",
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=1,
        time=_RETRY_MINUTES,
        dependency=f"afternotok:{number}",
    )


def _options(
    job: SubmittedRun, exclude: Iterable[str], sbatch: dict[str, str], **own: Any
) -> dict[str, Any]:
    """The parameters that all jobs share, and their own, without empty ones; `sbatch`: options
    that submitit has no names for."""
    given = own | job.resources.model_dump(include={"partition", "account", "qos", "constraint"})
    given["exclude"] = ",".join(dict.fromkeys(exclude))
    always = {
        "requeue": True,
        # Chained jobs after a failed one leave the queue, and so does the retry job of a good one.
        "kill-on-invalid-dep": "yes",
        # Python imports the package from where it is started.
        "chdir": str(job.code),
    }
    options = {name: value for name, value in given.items() if value}
    return options | {"additional_parameters": always | sbatch}


def _executor(job: SubmittedRun, options: dict[str, Any]) -> Any:
    """submitit's, for this job: one process in the batch shell, not one a task."""
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise UsageError("submitit is not installed: pip install 'kaizen-dist[slurm]'") from None
    executor = SlurmExecutor(folder=job.logs, python=shlex.quote(job.python))
    executor.update_parameters(**options, use_srun=False, setup=list(job.resources.setup))
    return executor


def submit_one(job: SubmittedRun, work: Callable[[], str], options: dict[str, Any]) -> str:
    """Queue one job that calls `work`, which is plain data; its number.

    Raises:
        KaizenError: if the cluster refuses.
    """
    executor = _executor(job, options)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with outside_a_job():
            return str(executor.submit(work).job_id)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise KaizenError(f"the cluster refuses the job: {error}") from error


@contextmanager
def outside_a_job() -> Iterator[None]:
    """Without the variables of the job that submits: sbatch would take them for its options."""
    from submitit.helpers import clean_env

    configured = {k: v for k, v in os.environ.items() if k == "SLURM_CONF"}
    with clean_env():
        os.environ |= configured
        yield


def running(*roots: Path) -> list[slurm.SlurmJob]:
    """Pending and running jobs of these runs, watchers among them, recognised by their working
    directory: the runs' own files could name jobs of others."""
    folders = {str(root / SLURM / name) for root in roots for name in ("", "code")}
    found = slurm.jobs().values()
    # The tasks of an array, which earlier versions submitted, all worked in the first one's folder.
    return [j for j in found if not j.over and j.folder in folders and "_" not in j.id]


def cancel(folder: Path) -> list[str]:
    """Cancel all jobs of a run, or of every submitted run beneath a folder, which follow their
    streams no longer; their numbers.

    Raises:
        DataError: if there is no run, or none that was ever submitted.
    """
    roots = [run.resolve() for run in find_runs(folder) if os.path.isfile(run / SLURM / FILE)]  # noqa: PTH113 - False also where one may not look
    if not roots:
        raise DataError(f"{folder}: no run in it was submitted; there is nothing to cancel")
    for log in map(AttemptLog, roots):
        # Before they are looked for: a watcher that is just being queued will read it.
        if watcher := followed(log.rows()):
            log.append(Stopped(job=watcher.job, time=now(), reason="cancelled"))
    numbers = [job.id for job in running(*roots)]
    if numbers:
        slurm.ask("scancel", *numbers)
    return numbers
