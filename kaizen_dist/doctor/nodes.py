"""The doctor across the nodes of a cluster: srun starts it there, and one report comes back.

The login node asks for the nodes and waits; on them, `kaizen-dist doctor --distributed --json`
runs once a GPU, or once a node. What srun is not told here it takes from its own variables
(SLURM_ACCOUNT, SRUN_CPUS_PER_TASK, ...). However this ends, no job is left behind.
"""

import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kaizen_dist.common.errors import Interrupted, KaizenError, UsageError
from kaizen_dist.common.files import parse_json
from kaizen_dist.doctor.finding import Finding
from kaizen_dist.doctor.report import Report
from kaizen_dist.launch import slurm

GROUP = "nodes"
_QUEUE_SECONDS = 300
_SECONDS = 900.0
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """The nodes to be looked at."""

    nodes: int
    partition: str | None = None
    gpus_per_node: int = 0


def examine_nodes(asked: Asked, out: Path, stream: str | None) -> Report:
    """What the doctor finds there; a single failure where the nodes cannot be had."""
    if told := _too_many(asked):
        return _failed(told)
    name = f"kaizen-doctor-{uuid.uuid4().hex[:8]}"
    command = [*_srun(asked, name), *_doctor(out, stream)]
    # A SIGTERM would end this process before it has ended srun.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as srun:
            try:
                said = srun.communicate(timeout=_SECONDS)[0].decode(errors="replace")
            finally:
                if srun.poll() is None:
                    _end(srun, name)
    except subprocess.TimeoutExpired:
        return _failed(f"no report within {_SECONDS:g} s")
    except OSError as error:
        return _failed(f"srun cannot be started: {error.strerror}")
    finally:
        signal.signal(signal.SIGTERM, previous)
    report = _report_in(said)
    if report is None:
        return _failed(f"srun ended with code {srun.returncode} and no report")
    return report


def _too_many(asked: Asked) -> str | None:
    """Why Slurm would keep such a job waiting for ever; None if it would not."""
    try:
        partition = slurm.partition(asked.partition)
    except UsageError as error:
        return str(error)
    there = slurm.nodes(partition.nodes)
    fit = [node for node in there if node.usable and node.gpus >= asked.gpus_per_node]
    if len(fit) >= asked.nodes:
        return None
    gpus = f" with {asked.gpus_per_node} GPUs" if asked.gpus_per_node else ""
    return f"{asked.nodes} nodes are asked, {len(fit)}{gpus} of {partition.name} take jobs"


def _srun(asked: Asked, name: str) -> list[str]:
    command = [
        "srun",
        f"--job-name={name}",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={max(1, asked.gpus_per_node)}",
        f"--time={int(_SECONDS / 60)}",
        f"--immediate={_QUEUE_SECONDS}",
        # The first rank has the report, also where another has failed.
        "--kill-on-bad-exit=0",
        "--quiet",
    ]
    command += [f"--partition={asked.partition}"] if asked.partition else []
    command += [f"--gpus-per-node={asked.gpus_per_node}"] if asked.gpus_per_node else []
    return command


def _doctor(out: Path, stream: str | None) -> list[str]:
    command = [sys.executable, "-m", "kaizen_dist", "doctor", "--distributed", "--json"]
    command += ["--out", str(out.absolute())]
    return command + (["--stream", stream] if stream else [])


def _report_in(said: str) -> Report | None:
    """The report among what the ranks print: the first rank's one line of JSON; None if it did
    not come, or not whole."""
    lines: Sequence[str] = [line for line in said.split("\n") if line.startswith('{"worst"')]
    try:
        return Report.from_json(parse_json(lines[-1])) if lines else None
    except (ValueError, KeyError, TypeError):
        return None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _end(srun: "subprocess.Popen[bytes]", name: str) -> None:
    """Take the job out of the queue, and end srun."""
    try:
        slurm.ask("scancel", f"--name={name}", timeout=_GRACE_SECONDS)
        srun.wait(_GRACE_SECONDS)
    except (KaizenError, subprocess.TimeoutExpired):
        srun.kill()


def _failed(value: str) -> Report:
    cure = (
        "ask for what sinfo shows as free (--nodes, --partition, --gpus-per-node); what srun said "
        "is above, and SLURM_ACCOUNT, SLURM_QOS, ... tell it more"
    )
    return Report([Finding(GROUP, "doctor on nodes", "fail", value, cure)])
