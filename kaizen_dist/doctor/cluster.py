"""What Slurm tells of a cluster: is it one, and will it carry a run home?"""

import importlib.util
import socket
from collections import Counter
from collections.abc import Iterator, Sequence

from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.threads import within
from kaizen_dist.doctor.finding import Finding
from kaizen_dist.launch import slurm as cluster
from kaizen_dist.launch.slurm import Node

GROUP = "cluster"
_SECONDS = 15.0
"""For Slurm to answer one question."""
_RESOLVE_SECONDS = 5.0
_NAMED = 8
_ASKED = 16
"""So many nodes' names are looked up."""


def slurm() -> Iterator[Finding]:
    """All of it; a single failure where this is no cluster, or one that does not answer."""
    try:
        version = cluster.ask("sinfo", "--version", timeout=_SECONDS).strip()
        listed = cluster.ask("sinfo", "-h", "-o", _COLUMNS, timeout=_SECONDS)
    except KaizenError as error:
        cure = "run this on a login node; `scontrol ping` says whether the controller is up"
        yield Finding(GROUP, "Slurm", "fail", str(error), cure)
        return
    yield Finding(GROUP, "Slurm", "ok", version)
    yield from map(partition, listed.splitlines())
    known = cluster.nodes()
    yield nodes(known)
    yield gpus(known)
    config = cluster.ask("scontrol", "show", "config", timeout=_SECONDS)
    settings = dict(line.split("=", 1) for line in config.splitlines() if "=" in line)
    settings = {name.strip(): value.strip() for name, value in settings.items()}
    yield requeue(settings.get("JobRequeue", "1"))
    yield preemption(settings)
    yield names(known)
    yield accounting()
    yield submission(importlib.util.find_spec("submitit") is not None)


_COLUMNS = "%R|%a|%L|%l|%M"


def partition(line: str) -> Finding:
    """Of a line "name|up|default time|longest time|preemption mode" of sinfo."""
    name, state, default, longest, mode = (field.strip() for field in line.split("|"))
    value = f"{state}; {default} by default, at most {longest}; preemption {mode}"
    facts = {"state": state, "default_time": default, "max_time": longest, "preempt_mode": mode}
    cure = "jobs in it wait: choose another with --partition"
    return Finding(GROUP, f"part. {name}", "ok" if state == "up" else "warn", value, cure, facts)


def nodes(known: Sequence[Node]) -> Finding:
    """How many nodes take jobs, and which do not."""
    lost = [node for node in known if not node.usable]
    states = Counter(node.state.lower() for node in known)
    value = f"{len(known)}: " + ", ".join(f"{count} {state}" for state, count in states.items())
    facts = {"nodes": len(known), "states": dict(states), "lost": [node.name for node in lost]}
    if not lost:
        return Finding(GROUP, "nodes", "ok", value, facts=facts)
    value += f" ({_listing([node.name for node in lost])})"
    cure = "sinfo -R says why; scontrol update NodeName=... State=RESUME takes one back"
    return Finding(
        GROUP, "nodes", "fail" if len(lost) == len(known) else "warn", value, cure, facts
    )


def gpus(known: Sequence[Node]) -> Finding:
    """How many GPUs a node has, as far as Slurm knows."""
    kinds = Counter(node.gpus for node in known)
    shown = [f"{count} on {kinds[count]} nodes" for count in sorted(kinds, reverse=True) if count]
    value = ", ".join(shown) or "none that Slurm knows of (Gres): ranks compute on CPUs"
    return Finding(GROUP, "GPUs of a node", "ok", value, facts={"kinds": dict(kinds)})


def requeue(job_requeue: str) -> Finding:
    """Whether a job that lost its node is queued again."""
    value = f"JobRequeue={job_requeue}"
    cure = "jobs come back only if they ask: sbatch --requeue"
    return Finding(GROUP, "requeue", "ok" if job_requeue == "1" else "warn", value, cure)


def preemption(settings: dict[str, str]) -> Finding:
    """What a job meets that has to make room."""
    kind, mode = settings.get("PreemptType", "(null)"), settings.get("PreemptMode", "OFF")
    if kind in ("(null)", "preempt/none"):
        return Finding(GROUP, "preemption", "ok", "none: a running job runs on")
    signalled = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    how = "with the job's own signal" if signalled else "with SIGTERM"
    value = f"{kind.removeprefix('preempt/')}, {mode}, {how}"
    facts = {"type": kind, "mode": mode, "user_signal": signalled}
    if "CANCEL" in mode:
        cure = "a preempted job is gone: ask for PreemptMode=REQUEUE, or a --qos that is spared"
        return Finding(GROUP, "preemption", "warn", value, cure, facts)
    return Finding(GROUP, "preemption", "ok", value, facts=facts)


def names(known: Sequence[Node]) -> Finding:
    """Whether nodes can be found by name, or at least by the address Slurm has for them."""
    asked = known[:_ASKED]
    nameless = [node.name for node in asked if not _resolves(node.name)]
    lost = [node.name for node in asked if not _resolves(node.address)]
    facts = {"nameless": nameless, "lost": lost}
    if lost:
        value = f"no address is known of {_listing(lost)}"
        cure = "ranks there cannot be reached: add them to DNS, /etc/hosts or NodeAddr"
        return Finding(GROUP, "node names", "fail", value, cure, facts)
    if nameless:
        value = f"by NodeAddr alone: {_listing(nameless)}"
        cure = "kaizen-dist uses the address; in own scripts set MASTER_ADDR to it, not to a name"
        return Finding(GROUP, "node names", "warn", value, cure, facts)
    return Finding(GROUP, "node names", "ok", f"{len(asked)} resolve", facts=facts)


def accounting() -> Finding:
    """Whether past jobs are remembered, which submitit wants to know."""
    try:
        cluster.ask("sacct", "-n", "-X", timeout=_SECONDS)
    except KaizenError as error:
        first = str(error).splitlines()[0]
        cure = "`status` asks squeue and the run's files instead; submitit's own states are unknown"
        return Finding(GROUP, "sacct", "warn", first, cure)
    return Finding(GROUP, "sacct", "ok", "answers")


def submission(installed: bool) -> Finding:
    """Whether `submit` can work from here."""
    value = "submitit is installed" if installed else "submitit is not installed"
    cure = "pip install -e '.[slurm]'"
    return Finding(GROUP, "submit", "ok" if installed else "fail", value, cure)


def _resolves(name: str) -> bool:
    try:
        within(_RESOLVE_SECONDS, lambda: socket.getaddrinfo(name, None))
    except OSError:  # a time-out is one too
        return False
    return True


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
