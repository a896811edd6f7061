"""Run a command that gets SIGTERM when the process that started it dies, even by SIGKILL.

`python -m kaizen_dist.distributed.die_with_parent PARENT COMMAND...` asks the kernel for that
signal and becomes the command: ranks of `--procs` and runs of a sweep, which would otherwise go on
writing while the same command starts again. Linux only; elsewhere the command just runs.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h; it survives execve(2)."""


def die_with_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so; to be started by the main thread."""
    module = "kaizen_dist.distributed.die_with_parent"
    return [sys.executable, "-m", module, str(os.getpid()), *command]


def main() -> None:
    """Ask for the signal, then become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before.
        if os.getppid() != int(parent):
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()
