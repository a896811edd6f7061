"""`bench scaling` on a cluster: one job of the largest number of nodes that measures them all.

From a login node the job is checked, written to OUT/slurm as a run's is, and queued; within an
allocation it is only written, and measured right there. Either way every count is a step of
srun on the first nodes of one and the same job, so that no other nodes and no other neighbours
come between the counts.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaizen_dist.bench import scaling
from kaizen_dist.bench.scaling import Plan
from kaizen_dist.bench.scalingreport import ScalingBench
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import open_append
from kaizen_dist.config import Config, load
from kaizen_dist.distributed.store import SIGNING_VARIABLE, new_secret
from kaizen_dist.launch import checks, resources, submission
from kaizen_dist.launch.job import SubmittedRun
from kaizen_dist.launch.request import absolute_paths, misfits
from kaizen_dist.launch.resources import Resources
from kaizen_dist.stream.manifest import Stream

_GIVEN = {
    "ranks_per_node": "SLURM_NTASKS_PER_NODE",
    "cpus_per_task": "SLURM_CPUS_PER_TASK",
    "gpus_per_node": "SLURM_GPUS_ON_NODE",
}
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Numbers from here on are no steps of srun, but the batch script, or salloc's shell."""


def allocated(environment: Mapping[str, str]) -> dict[str, int] | None:
    """What the job around this process has, by the names of Resources; None outside of one.

    Raises:
        UsageError: within a step of srun, which cannot start others of more nodes.
    """
    if "SLURM_JOB_ID" not in environment:
        return None
    if int(environment.get("SLURM_STEP_ID", _FIRST_SPECIAL_STEP)) < _FIRST_SPECIAL_STEP:
        raise UsageError("bench scaling starts the ranks itself: call it without srun")
    found = {field: environment.get(name, "") for field, name in _GIVEN.items()}
    given = {field: int(value) for field, value in found.items() if value.isdecimal()}
    return given | {"nodes": int(environment.get("SLURM_JOB_NUM_NODES", "1"))}


def wanted(
    profile: Path | None,
    flags: Mapping[str, Any],
    room: Mapping[str, int] | None,
    counts: tuple[int, ...],
) -> Resources:
    """What to ask for: a profile's values, over them what the job around has, over them flags.

    Raises:
        UsageError: listing all that is wrong.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    return resources.read(profile, {**(room or {}), **given, "nodes": counts[-1]})


def plan(
    counts: tuple[int, ...], repeats: int, steps: int, stream: Stream, asked: Resources
) -> Plan:
    """For counts of nodes."""
    place, threads = _place(stream), asked.cpus_per_task
    return Plan(counts, "node", asked.ranks, threads, repeats, steps, place, stream.num_classes)


def job_for(asked: Resources, stream: Stream, out: Path) -> SubmittedRun:
    """The job that measures; nothing is made.

    Raises:
        UsageError: if a job cannot work there.
    """
    place, root = _place(stream), out.resolve()
    wrong = list(checks.unfit_places(root, place, asked.container is not None))
    if wrong:
        raise UsageError("\n".join(wrong))
    return SubmittedRun(root=root, stream=place, tasks=len(stream), chain=False, resources=asked)


def _place(stream: Stream) -> str:
    """Where a stream is found from any folder."""
    return stream.place


def submit(job: SubmittedRun, config: Config, plan: Plan) -> str:
    """Queue it; its number.

    Raises:
        UsageError: naming all that is known to be wrong at once.
        KaizenError: if the cluster refuses.
    """
    options = submission.measuring_options(job)
    wrong = misfits(job, options, "measure ranks of this machine: --procs 1,2")
    if wrong:
        raise UsageError("\n".join(wrong))
    job.write(absolute_paths(config))
    return submission.submit_one(job, Measurement(str(job.root), plan), options)


def queued(job: SubmittedRun, number: str) -> str:
    """What whoever has submitted it wants to know."""
    said = job.logs / f"{number}_0_log.err"
    return (
        f"job {number} is in the queue; it leaves scaling.json, .md and .png in {job.root}\n"
        f"  squeue -j {number}; tail -f {said}; scancel {number}"
    )


def measure_here(job: SubmittedRun, config: Config, plan: Plan, nodes: int) -> ScalingBench:
    """Measure in the job of `nodes` nodes around this process.

    Raises:
        UsageError: if it has too few.
    """
    if nodes < job.resources.nodes:
        raise UsageError(f"--nodes: {job.resources.nodes} are more than the {nodes} of this job")
    job.write(absolute_paths(config))
    return _measure(job, plan)


@dataclass(frozen=True)
class Measurement:
    """Called by submitit in the job's batch shell, so plain data."""

    root: str
    plan: Plan

    def __call__(self) -> str:
        """Measure; where the results lie. Raises KaizenError if something could not be."""
        job = SubmittedRun.read(Path(self.root))
        _measure(job, self.plan).complain()
        return str(job.root / "scaling.md")


def _measure(job: SubmittedRun, plan: Plan) -> ScalingBench:
    environment = os.environ | job.resources.environment

    def start(count: int, arguments: list[str], output: Path, log: Path) -> int:
        secret = {SIGNING_VARIABLE: new_secret()}
        command = job.srun(job.rank(*arguments), log, output, count)
        # Python looks for the package where it is started: that is the copy beside the results.
        with os.fdopen(open_append(log), "ab") as said:
            return subprocess.run(
                command, env=environment | secret, cwd=job.code, stderr=said, check=False
            ).returncode

    given = [str(job.config)]
    return scaling.measure(plan, load(job.config), given, job.root, start)
