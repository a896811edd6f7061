"""Ends what is left of a cluster once nobody holds the other end of its standard input any more:
also where the tests themselves were killed.

    python reaper.py FOLDER    (the cluster's; cluster.py starts it)
"""

import signal
import sys
import time
from pathlib import Path

import processes
from processes import Known


def steps(folder: Path, node: str | None = None) -> list[Known]:
    """The step daemons of a cluster, or of one of its nodes, and everything that they run."""
    parents = dict(processes.processes())
    conf = f"SLURM_CONF={folder}/etc/slurm.conf"

    def ours(pid: int) -> bool:
        # A step daemon's own environment says nothing.
        if processes.name(pid) == "slurmstepd":
            logs = [f for f in processes.open_files(pid) if f.parent == folder / "log"]
            return any(node in (None, log.stem) for log in logs)
        # What is left over from a step daemon or a shell that was killed.
        environment = processes.environment(pid)
        nodes = [e.partition("=")[2] for e in environment if e.startswith("SLURMD_NODENAME=")]
        return conf in environment and any(node in (None, name) for name in nodes)

    return processes.with_descendants([p for p in parents if ours(p.pid)], parents)


def daemons(folder: Path) -> list[Known]:
    """Whatever writes a cluster's logs."""
    return [
        process
        for process, _ in processes.processes()
        if any(file.parent == folder / "log" for file in processes.open_files(process.pid))
    ]


def reap(folder: Path) -> None:
    """Until nothing is left; a daemon may start something while it is looked for."""
    while remaining := [*daemons(folder), *steps(folder)]:
        for process in remaining:
            process.send(signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    reap(Path(sys.argv[1]))
