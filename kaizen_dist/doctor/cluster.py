"""A Slurm cluster: its settings, and the doctor across its nodes.

The login node asks Slurm for its settings. For the nodes it starts
`kaizen-dist doctor --distributed --json` by srun, once a GPU or once a node, and waits for the
report. srun takes further options from its own variables (SLURM_ACCOUNT,
SRUN_CPUS_PER_TASK, ...). However this ends, no job is left behind.
"""

import importlib.util
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kaizen_dist.common.errors import Interrupted, KaizenError, UsageError
from kaizen_dist.common.files import parse_json
from kaizen_dist.common.threads import within
from kaizen_dist.doctor.report import DoctorReport, Finding, fail_if, judged, shortened, warn_if
from kaizen_dist.launch import slurm
from kaizen_dist.launch.slurm import Node

GROUP = "cluster"
_SECONDS = 15.0
"""Time-out of one query to Slurm."""
_RESOLVE_SECONDS = 5.0
_NAMED = 8
_ASKED = 16
"""Nodes whose names are looked up."""
_PARTITION_COLUMNS = "%R|%a|%L|%l|%M"
_QUEUE_SECONDS = 300
_RUN_SECONDS = 900.0
_GRACE_SECONDS = 10.0


def settings() -> Iterator[Finding]:
    """All of them; a single failure where this is no cluster, or one that does not answer."""
    try:
        version = slurm.ask("sinfo", "--version", timeout=_SECONDS).strip()
        listed = slurm.ask("sinfo", "-h", "-o", _PARTITION_COLUMNS, timeout=_SECONDS)
    except KaizenError as error:
        cure = "run this on a login node; `scontrol ping` says whether the controller is up"
        yield Finding(GROUP, "Slurm", "fail", str(error), cure)
        return
    yield Finding(GROUP, "Slurm", "ok", version)
    yield from map(partition, listed.splitlines())
    known = slurm.nodes()
    yield nodes(known)
    yield gpus(known)
    config = slurm.ask("scontrol", "show", "config", timeout=_SECONDS)
    pairs = (line.split("=", 1) for line in config.splitlines() if "=" in line)
    found = {name.strip(): value.strip() for name, value in pairs}
    yield requeue(found.get("JobRequeue", "1"))
    yield preemption(found)
    yield names(known)
    yield accounting()
    yield submission(importlib.util.find_spec("submitit") is not None)


def partition(line: str) -> Finding:
    """A line "name|up|default time|longest time|preemption mode" of sinfo."""
    name, state, default, longest, mode = (field.strip() for field in line.split("|"))
    value = f"{state}; {default} by default, at most {longest}; preemption {mode}"
    facts = {"state": state, "default_time": default, "max_time": longest, "preempt_mode": mode}
    rule = warn_if(state != "up", "jobs in it wait: choose another with --partition")
    return judged(GROUP, f"part. {name}", value, facts, rule)


def nodes(known: Sequence[Node]) -> Finding:
    """Nodes by state, and those that take no jobs."""
    lost = [node.name for node in known if not node.usable]
    states = Counter(node.state.lower() for node in known)
    value = f"{len(known)}: " + ", ".join(f"{count} {state}" for state, count in states.items())
    value += f" ({shortened(lost, _NAMED)})" if lost else ""
    facts = {"nodes": len(known), "states": dict(states), "lost": lost}
    cure = "sinfo -R says why; scontrol update NodeName=... State=RESUME takes one back"
    rule = fail_if if len(lost) == len(known) else warn_if
    return judged(GROUP, "nodes", value, facts, rule(lost, cure))


def gpus(known: Sequence[Node]) -> Finding:
    """GPUs of a node, as far as Slurm knows."""
    kinds = Counter(node.gpus for node in known)
    shown = [f"{count} on {kinds[count]} nodes" for count in sorted(kinds, reverse=True) if count]
    value = ", ".join(shown) or "none that Slurm knows of (Gres): ranks compute on CPUs"
    return Finding(GROUP, "GPUs of a node", "ok", value, facts={"kinds": dict(kinds)})


def requeue(job_requeue: str) -> Finding:
    """Whether a job that lost its node is queued again."""
    rule = warn_if(job_requeue != "1", "jobs come back only if they ask: sbatch --requeue")
    return judged(GROUP, "requeue", f"JobRequeue={job_requeue}", {}, rule)


def preemption(found: dict[str, str]) -> Finding:
    """Fate of a job that has to make room."""
    kind, mode = found.get("PreemptType", "(null)"), found.get("PreemptMode", "OFF")
    if kind in ("(null)", "preempt/none"):
        return Finding(GROUP, "preemption", "ok", "none: a running job runs on")
    signalled = "preempt_send_user_signal" in found.get("SlurmctldParameters", "")
    how = "with the job's own signal" if signalled else "with SIGTERM"
    facts = {"type": kind, "mode": mode, "user_signal": signalled}
    cure = "a preempted job is gone: ask for PreemptMode=REQUEUE, or a --qos that is spared"
    value = f"{kind.removeprefix('preempt/')}, {mode}, {how}"
    return judged(GROUP, "preemption", value, facts, warn_if("CANCEL" in mode, cure))


def names(known: Sequence[Node]) -> Finding:
    """Whether nodes can be found by name, or at least by the address Slurm has for them."""
    asked = known[:_ASKED]
    nameless = [node.name for node in asked if not _resolves(node.name)]
    lost = [node.name for node in asked if not _resolves(node.address)]
    value = f"by NodeAddr alone: {shortened(nameless, _NAMED)}"
    value = value if nameless else f"{len(asked)} resolve"
    return judged(
        GROUP,
        "node names",
        f"no address is known of {shortened(lost, _NAMED)}" if lost else value,
        {"nameless": nameless, "lost": lost},
        fail_if(lost, "ranks there cannot be reached: add them to DNS, /etc/hosts or NodeAddr"),
        warn_if(
            nameless,
            "kaizen-dist uses the address; in own scripts set MASTER_ADDR to it, not to a name",
        ),
    )


def accounting() -> Finding:
    """Whether past jobs are remembered, which submitit wants to know."""
    try:
        slurm.ask("sacct", "-n", "-X", timeout=_SECONDS)
    except KaizenError as error:
        first = str(error).splitlines()[0]
        cure = "`status` asks squeue and the run's files instead; submitit's own states are unknown"
        return Finding(GROUP, "sacct", "warn", first, cure)
    return Finding(GROUP, "sacct", "ok", "answers")


def submission(installed: bool) -> Finding:
    """Whether `submit` can work from here."""
    value = "submitit is installed" if installed else "submitit is not installed"
    return judged(GROUP, "submit", value, {}, fail_if(not installed, "pip install -e '.[slurm]'"))


def _resolves(name: str) -> bool:
    try:
        within(_RESOLVE_SECONDS, lambda: socket.getaddrinfo(name, None))
    except OSError:  # a time-out is one too
        return False
    return True


# ---- across nodes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NodesRequest:
    """The nodes to be checked."""

    nodes: int
    partition: str | None = None
    gpus_per_node: int = 0


def examine_nodes(asked: NodesRequest, out: Path, stream: str | None) -> DoctorReport:
    """The doctor's report from these nodes; a single failure where they cannot be had."""
    if problem := _unavailable(asked):
        return _failed(problem)
    name = f"kaizen-doctor-{uuid.uuid4().hex[:8]}"
    # A SIGTERM would end this process before it has ended srun.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with subprocess.Popen(
            _srun(asked, name, out, stream), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as srun:
            try:
                printed = srun.communicate(timeout=_RUN_SECONDS)[0].decode(errors="replace")
            finally:
                if srun.poll() is None:
                    _end(srun, name)
    except subprocess.TimeoutExpired:
        return _failed(f"no report within {_RUN_SECONDS:g} s")
    except OSError as error:
        return _failed(f"srun cannot be started: {error.strerror}")
    finally:
        signal.signal(signal.SIGTERM, previous)
    # The first rank prints the report on one line, among the output of all.
    lines = [line for line in printed.split("\n") if line.startswith('{"worst"')]
    try:
        return DoctorReport.from_json(parse_json(lines[-1]))
    except (ValueError, KeyError, TypeError, IndexError):
        return _failed(f"srun ended with code {srun.returncode} and no report")


def _unavailable(asked: NodesRequest) -> str | None:
    """Why Slurm would keep such a job waiting for ever; None if it would not."""
    try:
        chosen = slurm.partition(asked.partition)
    except UsageError as error:
        return str(error)
    there = slurm.nodes(chosen.nodes)
    fit = [node for node in there if node.usable and node.gpus >= asked.gpus_per_node]
    if len(fit) >= asked.nodes:
        return None
    gpus = f" with {asked.gpus_per_node} GPUs" if asked.gpus_per_node else ""
    return f"{asked.nodes} nodes are asked, {len(fit)}{gpus} of {chosen.name} take jobs"


def _srun(asked: NodesRequest, name: str, out: Path, stream: str | None) -> list[str]:
    doctor = [sys.executable, "-m", "kaizen_dist", "doctor", "--distributed", "--json"]
    return [
        "srun",
        f"--job-name={name}",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={max(1, asked.gpus_per_node)}",
        f"--time={int(_RUN_SECONDS / 60)}",
        f"--immediate={_QUEUE_SECONDS}",
        # The first rank has the report, also where another has failed.
        "--kill-on-bad-exit=0",
        "--quiet",
        *([f"--partition={asked.partition}"] if asked.partition else []),
        *([f"--gpus-per-node={asked.gpus_per_node}"] if asked.gpus_per_node else []),
        *doctor,
        f"--out={out.absolute()}",
        *([f"--stream={stream}"] if stream else []),
    ]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _end(srun: "subprocess.Popen[bytes]", name: str) -> None:
    """Take the job out of the queue, and end srun."""
    try:
        slurm.ask("scancel", f"--name={name}", timeout=_GRACE_SECONDS)
        srun.wait(_GRACE_SECONDS)
    except (KaizenError, subprocess.TimeoutExpired):
        srun.kill()


def _failed(value: str) -> DoctorReport:
    cure = (
        "ask for what sinfo shows as free (--nodes, --partition, --gpus-per-node); what srun said "
        "is above, and SLURM_ACCOUNT, SLURM_QOS, ... tell it more"
    )
    return DoctorReport([Finding("nodes", "doctor on nodes", "fail", value, cure)])
