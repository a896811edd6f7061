"""Ranks that srun started, described as torchrun describes its own.

In a step of several tasks (`srun -n 4 kaizen-dist train ...`) Slurm tells every task by variables
of its own who it is; everything else here reads torchrun's. `describe_as_torchrun` translates
them, before anything reads them. It leaves alone a batch script (which is no step), a step of one
task, and what torchrun or `--procs` started within a step (there RANK is set already).
"""

import re
import subprocess
from collections.abc import Mapping, MutableMapping

_SCONTROL_SECONDS = 20
_PORTS = range(10_000, 20_000)
"""Where ranks meet: below what systems hand out by themselves, and above what services use."""


def describe_as_torchrun(environment: MutableMapping[str, str]) -> None:
    """Add RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    MASTER_ADDR and MASTER_PORT stay as they are where they are given.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "SLURM_STEP_ID" not in environment or "RANK" in environment or tasks == 1:
        return
    one_node = environment["SLURM_STEP_NUM_NODES"] == "1"
    if "MASTER_ADDR" not in environment:
        first = first_node(environment["SLURM_STEP_NODELIST"])
        environment["MASTER_ADDR"] = "127.0.0.1" if one_node else address(first)
    environment.setdefault("MASTER_PORT", str(port(environment)))
    per_node = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=str(tasks),
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(per_node[int(environment["SLURM_NODEID"])]),
    )
    # As with `--procs`: no native stack traces over our own messages, and ranks of one machine
    # need not be reachable from others.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if one_node:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")


def cores_of_task(environment: Mapping[str, str]) -> int | None:
    """CPUs that were asked for each task, where this rank is one (and not torchrun's in one).

    Bound to them, it sees no others; a share of what it sees would be a share of its own.
    """
    ours = environment.get("SLURM_PROCID"), environment.get("SLURM_STEP_NUM_TASKS")
    if ours != (environment.get("RANK"), environment.get("WORLD_SIZE")):
        return None
    return int(environment.get("SLURM_CPUS_PER_TASK", "0")) or None


def first_node(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: rack1n04 of rack[1-2]n[04-08],gpu3."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])+", nodes)
    assert first, "a step has nodes"
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])


def tasks_per_node(counts: str) -> list[int]:
    """Tasks on every node of a step, from how Slurm writes them: 2(x3),1 is [2, 2, 2, 1]."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, times in groups for _ in range(int(times or 1))]


def address(node: str) -> str:
    """Where the controller reaches a node; its name where the controller cannot be asked.

    The name alone will not do: on many clusters node names do not resolve.
    """
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", "-o", node],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SCONTROL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return node
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    return found[1] if found else node


def port(environment: Mapping[str, str]) -> int:
    """A port that all tasks of a step agree on, and that other steps, jobs of about the same
    time and an earlier life of this job do not use."""
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    return _PORTS[(101 * job + 10 * step + restarts) % len(_PORTS)]
