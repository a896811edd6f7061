"""A command that is told to end (SIGTERM) when the process that started it dies, even by SIGKILL.

`python -m kaizen_dist.distributed.die_with_parent PARENT COMMAND...` ties itself to its parent and
becomes the command: ranks of `--procs` and runs of a sweep, which would otherwise go on writing
where the same command begins anew. Only Linux can do this; elsewhere the command runs on.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h; it outlives execve(2)."""


def tied(command: Sequence[str]) -> list[str]:
    """What to start in place of a command, by the main thread, to have it tied to this process."""
    return [
        sys.executable,
        "-m",
        "kaizen_dist.distributed.die_with_parent",
        str(os.getpid()),
        *command,
    ]


def main() -> None:
    """Tie, then become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have died before we were tied to it.
        if os.getppid() != int(parent):
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()
