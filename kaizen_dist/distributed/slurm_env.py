"""Translate srun's environment variables to torchrun's.

In a step of several tasks (`srun -n 4 kaizen-dist train ...`) Slurm describes each task by its own
variables; everything else here reads torchrun's. `describe_as_torchrun` translates them before
anything reads them. It ignores a batch script (which is no step), a step of one task, a command
typed into the shell of `srun --pty` (which is one of a step's tasks, and whose other tasks will
never start), and processes that torchrun or `--procs` started within a step (RANK is set already).
"""

import os
import re
import subprocess
from collections.abc import Mapping, MutableMapping

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import UsageError

_SCONTROL_SECONDS = 20
_CURE = (
    "start the ranks by srun itself, by torchrun or --procs N; or unset SLURM_STEP_ID to run alone"
)
_PORTS = range(10_000, 20_000)
"""MASTER_PORT: below the ephemeral ports of systems, above those of services."""


def describe_as_torchrun(environment: MutableMapping[str, str]) -> None:
    """Add RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    MASTER_ADDR and MASTER_PORT stay as they are where they are given.

    Raises:
        UsageError: naming a variable of Slurm's that is missing or invalid.
    """
    if "SLURM_STEP_ID" not in environment or "RANK" in environment:
        return
    try:
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks == 1 or _in_a_shell(environment):
            return
        environment.update(_described(environment, tasks))
    except KeyError as missing:
        raise UsageError(f"{missing.args[0]} is missing among what srun sets; {_CURE}") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise UsageError(f"what srun sets makes no sense: {one_line(error)}; {_CURE}") from None
    one_node = environment["SLURM_STEP_NUM_NODES"] == "1"
    if one_node:
        # As with `--procs`: ranks of one machine need not be reachable from other machines.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _described(environment: Mapping[str, str], tasks: int) -> dict[str, str]:
    one_node = environment["SLURM_STEP_NUM_NODES"] == "1"
    host = environment.get("MASTER_ADDR")
    if host is None:
        first = first_node(environment["SLURM_STEP_NODELIST"])
        host = "127.0.0.1" if one_node else address(first)
    per_node = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port(environment)),
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node[int(environment["SLURM_NODEID"])]),
    }


def _in_a_shell(environment: Mapping[str, str]) -> bool:
    """Whether this runs in the shell that `srun --pty` started, and is no task itself.

    Such a shell has a terminal, and is itself the task of that number.
    """
    return (
        "SLURM_PTY_PORT" in environment
        and environment.get("SLURM_TASK_PID") != str(os.getpid())
        and _has_terminal()
    )


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def cores_of_task(environment: Mapping[str, str]) -> int | None:
    """CPUs requested for each task, if this rank is one (and not torchrun's within one).

    A bound task sees only these; dividing what it sees by the ranks would divide its own share.
    """
    ours = environment.get("SLURM_PROCID"), environment.get("SLURM_STEP_NUM_TASKS")
    if ours != (environment.get("RANK"), environment.get("WORLD_SIZE")):
        return None
    return int(environment.get("SLURM_CPUS_PER_TASK", "0")) or None


def first_node(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: rack1n04 of rack[1-2]n[04-08],gpu3."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])+", nodes)
    if first is None:
        raise ValueError(f"no nodes in {nodes!r}")
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])


def tasks_per_node(counts: str) -> list[int]:
    """Tasks on every node of a step, from how Slurm writes them: 2(x3),1 is [2, 2, 2, 1]."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, times in groups for _ in range(int(times or 1))]


def address(node: str) -> str:
    """A node's address according to the controller; its name if the controller does not answer.

    The name alone does not suffice: on many clusters node names do not resolve.
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
