"""`bench scaling` on a cluster: one job of the largest number of nodes that measures them all.

From a login node the job is checked, written to OUT/slurm like a run's, and queued; within an
allocation it is only written, and measured right there. Either way every count is a step of
srun on the first nodes of one and the same job, so that all counts have the same nodes and the
same neighbours.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaizen_dist.bench import scaling
from kaizen_dist.bench.result import BenchResult
from kaizen_dist.bench.scaling_plan import ScalingPlan, ScalingRequest, check, parse_counts
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import open_append
from kaizen_dist.config import Config, load
from kaizen_dist.distributed.store import SIGNING_VARIABLE, new_secret
from kaizen_dist.launch import checks, resources, submission
from kaizen_dist.launch.job import SubmittedRun
from kaizen_dist.launch.request import absolute_paths, misfits

_GIVEN = {
    "ranks_per_node": "SLURM_NTASKS_PER_NODE",
    "cpus_per_task": "SLURM_CPUS_PER_TASK",
    "gpus_per_node": "SLURM_GPUS_ON_NODE",
}
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Numbers from here on are no steps of srun, but the batch script, or salloc's shell."""


@dataclass(frozen=True)
class Queued:
    """A job that will measure."""

    number: str
    job: SubmittedRun

    def to_json(self) -> dict[str, str]:
        return {"job": self.number, "out": str(self.job.root)}

    @property
    def message(self) -> str:
        """For the user who submitted it."""
        number, log = self.number, self.job.logs / f"{self.number}_0_log.err"
        return (
            f"job {number} is in the queue; it leaves scaling.json, .md and .png in "
            f"{self.job.root}\n  squeue -j {number}; tail -f {log}; scancel {number}"
        )


def measure(
    asked: ScalingRequest, profile: Path | None, flags: Mapping[str, Any]
) -> BenchResult | Queued:
    """Measure in the job around this process, or queue one that will.

    The job gets the values of a profile, over them those of the job around, over them flags.

    Raises:
        UsageError: listing all that is known to be wrong.
        KaizenError: if the cluster refuses.
    """
    most, room = parse_counts(asked.counts)[-1], allocated(os.environ)
    config, stream = asked.open()
    named = {name: value for name, value in flags.items() if value is not None}
    wanted = resources.read(profile, {**(room or {}), **named, "nodes": most})
    place, root = stream.place, asked.out.resolve()
    plan = asked.plan(stream, "node", wanted.ranks, wanted.cpus_per_task)
    check(plan, config, stream, asked.out)
    if wrong := list(checks.unfit_places(root, place, wanted.container is not None)):
        raise UsageError("\n".join(wrong))
    job = SubmittedRun(root=root, stream=place, tasks=len(stream), chain=False, resources=wanted)
    if room is None:
        return _submit(job, config, plan)
    if room["nodes"] < wanted.nodes:
        raise UsageError(f"--nodes: {wanted.nodes} are more than the {room['nodes']} of this job")
    job.write(absolute_paths(config))
    return _measure(job, plan)


def allocated(environment: Mapping[str, str]) -> dict[str, int] | None:
    """Nodes, tasks, cores and GPUs of the job around this process, by the names of Resources;
    None outside of one.

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


def _submit(job: SubmittedRun, config: Config, plan: ScalingPlan) -> Queued:
    options = submission.measuring_options(job)
    if wrong := misfits(job, options, "measure ranks of this machine: --procs 1,2"):
        raise UsageError("\n".join(wrong))
    job.write(absolute_paths(config))
    return Queued(submission.submit_one(job, Measurement(str(job.root), plan), options), job)


@dataclass(frozen=True)
class Measurement:
    """Called by submitit in the job's batch shell, so plain data."""

    root: str
    plan: ScalingPlan

    def __call__(self) -> str:
        """Measure; the path of the results. Raises KaizenError if a measurement failed."""
        job = SubmittedRun.read(Path(self.root))
        _measure(job, self.plan).raise_failures()
        return str(job.root / "scaling.md")


def _measure(job: SubmittedRun, plan: ScalingPlan) -> BenchResult:
    environment = os.environ | job.resources.environment

    def start(count: int, arguments: list[str], output: Path, log: Path) -> int:
        secret = {SIGNING_VARIABLE: new_secret()}
        command = job.srun(job.rank(*arguments), log, output, count)
        # Python looks for the package where it is started: that is the copy beside the results.
        with os.fdopen(open_append(log), "ab") as errors:
            return subprocess.run(
                command, env=environment | secret, cwd=job.code, stderr=errors, check=False
            ).returncode

    return scaling.measure(plan, load(job.config), [str(job.config)], job.root, start)
