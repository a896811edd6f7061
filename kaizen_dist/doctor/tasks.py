"""Ranks that srun started: Slurm's variables in the words of torchrun's.

The first node's address comes from Slurm's own records, since its name need not resolve.
"""

import os

from kaizen_dist.launch import cluster

_PORTS = range(20_000, 30_000)


def adopt_srun() -> None:
    """Describe this rank to `engine.process`, if srun started it and nobody has described it.

    Raises:
        KaizenError: if Slurm does not say where the first node is.
    """
    slurm = os.environ
    if "RANK" in slurm or "SLURM_STEP_NUM_TASKS" not in slurm:
        return
    first = cluster.expand(slurm["SLURM_STEP_NODELIST"])[0]
    # The same on all ranks, and another for each step of each job.
    key = 100 * int(slurm["SLURM_JOB_ID"]) + int(slurm.get("SLURM_STEP_ID", "0"))
    os.environ |= {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": _tasks_here(slurm["SLURM_STEP_TASKS_PER_NODE"], slurm["SLURM_NODEID"]),
        "MASTER_ADDR": cluster.nodes([first])[0].address,
        "MASTER_PORT": str(_PORTS[key % len(_PORTS)]),
    }


def _tasks_here(per_node: str, node: str) -> str:
    """Tasks of the `node`-th node in Slurm's compact list: 2(x3),1 is 2, 2, 2, 1."""
    counts: list[str] = []
    for part in per_node.split(","):
        count, _, repeats = part.partition("(x")
        counts += [count] * int(repeats.rstrip(")") or 1)
    return counts[int(node)]
