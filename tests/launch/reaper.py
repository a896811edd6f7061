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


def left(folder: Path) -> list[Known]:
    """Daemons and step daemons, which have the cluster's logs open, and what they run."""
    parents = dict(processes.processes())
    here = f"SLURM_CONF={folder}/etc/slurm.conf"

    def ours(pid: int) -> bool:
        if any(file.parent == folder / "log" for file in processes.open_files(pid)):
            return True
        environment = processes.environment(pid)
        return here in environment and any(e.startswith("SLURMD_NODENAME=") for e in environment)

    return processes.with_descendants([p for p in parents if ours(p.pid)], parents)


def reap(folder: Path) -> None:
    """Until nothing is left; a daemon may start something while it is looked for."""
    while remaining := left(folder):
        for process in remaining:
            process.send(signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    reap(Path(sys.argv[1]))
