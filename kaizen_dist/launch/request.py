"""A run on its way into the queue: everything is checked, then written, and only then submitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.common.formatting import plural
from kaizen_dist.config import Config
from kaizen_dist.launch import checks, following, slurm, submission
from kaizen_dist.launch.job import SubmittedRun, watchers
from kaizen_dist.launch.resources import Resources
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.runs.reader import read_results
from kaizen_dist.stream.manifest import Stream


def job_for(
    config: Config,
    stream: Stream,
    out: Path,
    asked: Resources,
    chain: bool,
    until: int | None = None,
    follow: int | None = None,
) -> SubmittedRun:
    """The job that would train this run, on all tasks or the first `until`; writes nothing. With
    `follow` new tasks are looked for every so many seconds.

    Raises:
        UsageError: naming everything that is known to be wrong at once.
        WriteError: if the run's folder cannot be written, or the disk is too small for it.
    """
    out = out.resolve()
    wrong: list[str] = []
    _collect(wrong, lambda: run_folder.check(config, stream, asked.world_size))
    _collect(wrong, lambda: run_folder.check_folder(out, config, stream))
    job = SubmittedRun(
        root=out,
        stream=stream.place,
        tasks=len(stream),
        chain=chain,
        until=until,
        follow=follow,
        resources=asked,
    )
    _collect(wrong, lambda: _check_work(job))
    procs = f" --procs {asked.world_size}" if asked.world_size > 1 else ""
    wrong += misfits(
        job,
        submission.attempt_options(job),
        f"train on this machine: kaizen-dist train CONFIG --stream {job.stream} --out {out}{procs}",
    )
    if wrong:
        raise UsageError("\n".join(wrong))
    checks.check_room(out, checkpoint_bytes(config, stream.num_classes))
    return job


def misfits(job: SubmittedRun, options: dict[str, Any], otherwise: str) -> list[str]:
    """Why the cluster would refuse a job with these options, or lose what it writes; `otherwise` is
    the cure where there is no cluster."""
    wrong = list(checks.unfit_places(job.root, job.stream, job.resources.container is not None))
    if not slurm.available():
        return [*wrong, f"there is no Slurm here (no sbatch); to {otherwise}"]
    _collect(wrong, lambda: wrong.extend(checks.problems(job.resources)))
    local = checks.disk_problem(job.root, job.resources)
    wrong += [] if local is None else [local]
    queue = submission.running(job.root)
    watching = watchers(job.root, queue)
    wrong += [
        f"{job.root} is in the queue already, as job {j.id} ({j.state})"
        f"{', which looks for new tasks of its stream' if j in watching else ''}; "
        f"`kaizen-dist cancel {job.root}` takes it out"
        for j in queue
    ]
    if not wrong:
        try:
            slurm.ask("sbatch", "--test-only", given=submission.script(job, options))
            if job.follow is not None:
                following.check(job)
        except KaizenError as error:
            wrong.append(str(error))
    return wrong


def _check_work(job: SubmittedRun) -> None:
    """That there is something to learn, or to look for. Raises UsageError."""
    results = read_results(job.root)
    learnt = 0 if results is None else len(results.accuracy)
    if job.until is not None and learnt >= job.until:
        raise UsageError(f"{job.root} has learnt {plural(learnt, 'task')} already; raise --until")
    if learnt >= job.to_learn and job.follow is None:
        raise UsageError(
            f"{job.root} is finished; there is nothing to submit until its stream grows, and with "
            "--follow a job looks for that"
        )


def _collect(wrong: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except UsageError as error:
        wrong.append(str(error))


def checkpoint_bytes(config: Config, classes: int) -> int:
    """Estimate of the bytes on disk of a run's checkpoints at any time."""
    import torch

    from kaizen_dist.learner.learner import Learner

    with torch.device("meta"):
        learner = Learner(config, classes)
        learner.begin_task(first=False)
    whole = sum(t.numel() * t.element_size() for t in learner.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in learner.parameters() if p.requires_grad)
    moments = 2 if config.optim.name == "adamw" else 1
    return (config.checkpoint.keep_last + 1) * (whole + moments * trained)


def submit(job: SubmittedRun, config: Config) -> tuple[list[str], str | None]:
    """Write RUN/slurm and queue the run's jobs: their numbers, and that of the first one that looks
    for new tasks.

    Raises:
        KaizenError: if the cluster refuses.
        WriteError: if RUN/slurm cannot be written.
    """
    job.write(absolute_paths(config))
    results = read_results(job.root)
    done = 0 if results is None else len(results.accuracy)
    # First: what is taken out of the queue before it begins was submitted by a followed run.
    watcher = None if job.follow is None else following.begin(job)
    tasks = submission.tasks_of(job, done) if done < job.to_learn else []
    try:
        return submission.submit(job, tasks), watcher
    except KaizenError:
        if watcher is not None:
            submission.cancel(job.root)
        raise


def absolute_paths(config: Config) -> Config:
    """A configuration whose files are found from any folder."""
    places = {"parallel": "deepspeed_config", "stream": "cache_dir"}
    changed = {}
    for section, key in places.items():
        part = getattr(config, section)
        if (named := getattr(part, key)) is not None:
            changed[section] = part.model_copy(update={key: str(Path(named).absolute())})
    return config.model_copy(update=changed)
