"""From a login node: everything about a run is checked, then written, and only then queued."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.launch import checks, slurm, submission
from kaizen_dist.launch.job import Job
from kaizen_dist.launch.resources import Resources
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.stream.manifest import Stream


def job_for(config: Config, stream: Stream, out: Path, asked: Resources, chain: bool) -> Job:
    """The job that would train this run; nothing is made.

    Raises:
        UsageError: naming all that is known to be wrong at once.
        WriteError: if the run's folder cannot be written, or the disk is too small for it.
    """
    out = out.resolve()
    wrong: list[str] = []
    _gather(wrong, lambda: run_folder.check(config, stream, asked.world_size))
    _gather(wrong, lambda: run_folder.check_folder(out, config, stream))
    results = run_folder.read_results(out)
    if results is not None and results.finished:
        wrong.append(f"{out} is finished; there is nothing to submit")
    job = Job(root=out, stream=stream.place, tasks=len(stream), chain=chain, resources=asked)
    procs = f" --procs {asked.world_size}" if asked.world_size > 1 else ""
    wrong += misfits(
        job,
        submission.attempt_options(job, (), None),
        f"train on this machine: kaizen-dist train CONFIG --stream {job.stream} --out {out}{procs}",
    )
    if wrong:
        raise UsageError("\n".join(wrong))
    checks.check_room(out, checkpoint_bytes(config, stream.num_classes))
    return job


def misfits(job: Job, options: dict[str, Any], otherwise: str) -> list[str]:
    """Why the cluster would not take a job with these options, or not give back what it writes;
    `otherwise` is what to do where there is none."""
    wrong = list(checks.unfit_places(job.root, job.stream, job.resources.container is not None))
    if not slurm.available():
        return [*wrong, f"there is no Slurm here (no sbatch); to {otherwise}"]
    wrong += checks.problems(job.resources)
    local = checks.disk_problem(job.root, job.resources)
    wrong += [] if local is None else [local]
    wrong += [
        f"{job.root} is in the queue already, as job {j.id} ({j.state}); `kaizen-dist cancel "
        f"{job.root}` takes it out"
        for j in submission.running(job.root)
    ]
    refused = None if wrong else slurm.refusal(submission.script(job, options))
    return wrong if refused is None else [refused]


def _gather(wrong: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except UsageError as error:
        wrong.append(str(error))


def checkpoint_bytes(config: Config, classes: int) -> int:
    """About what the checkpoints of a run take on disk at a time."""
    import torch

    from kaizen_dist.learner.learner import Learner

    with torch.device("meta"):
        learner = Learner(config, classes)
        learner.begin_task(first=False)
    whole = sum(t.numel() * t.element_size() for t in learner.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in learner.parameters() if p.requires_grad)
    moments = 2 if config.optim.name == "adamw" else 1
    return (config.checkpoint.keep_last + 1) * (whole + moments * trained)


def variants(grid: Iterable[str]) -> list[dict[str, str]]:
    """Every combination of `key=value1,value2,...`, as {key: value}.

    Raises:
        UsageError: for what is not of that form.
    """
    axes = []
    for text in grid:
        key, equals, values = text.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise UsageError(f"--array {text!r}: write key=value1,value2, e.g. train.seed=0,1,2")
        axes.append([(key, value) for value in values.split(",")])
    return [dict(combination) for combination in product(*axes)]


def name_of(variant: Mapping[str, str]) -> str:
    """A folder's name for one of an array's runs: byol_fraction-0.01_seed-1."""
    words = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in variant.items()]
    return "_".join(word.removeprefix("method-").replace("/", "-") for word in words)


def submit(jobs: Sequence[tuple[Job, Config]]) -> list[str]:
    """Write RUN/slurm of each run and queue them: one run by itself, several as an array.

    The numbers of the jobs. Raises KaizenError, WriteError.
    """
    for job, config in jobs:
        job.write(at_home_anywhere(config))
    if len(jobs) > 1:
        return submission.submit_array([job for job, _ in jobs])
    return submission.submit(jobs[0][0], submission.links(jobs[0][0], done(jobs[0][0])))


def at_home_anywhere(config: Config) -> Config:
    """A configuration whose files are found from any folder."""
    places = {"parallel": "deepspeed_config", "stream": "cache_dir"}
    changed = {}
    for section, key in places.items():
        part = getattr(config, section)
        if (named := getattr(part, key)) is not None:
            changed[section] = part.model_copy(update={key: str(Path(named).absolute())})
    return config.model_copy(update=changed)


def done(job: Job) -> int:
    """Tasks that a run has finished already."""
    results = run_folder.read_results(job.root)
    return 0 if results is None else len(results.accuracy)
