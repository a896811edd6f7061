#!/usr/bin/env python3
"""In python's place under `train.sbatch`: a rank that waits for a signal and exits 75 (after a
requeue it ends at once), or torchrun, which starts one such rank and hides its exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

TORCHRUN = "torch.distributed.run"


def stop(_number: int, _frame: FrameType | None) -> None:
    Path(f"{sys.argv[-1]}-stopped-{os.environ['SLURM_PROCID']}").touch()
    sys.exit(75)


if TORCHRUN in sys.argv:
    rank = [argument for argument in sys.argv if argument != TORCHRUN]
    sys.exit(subprocess.run(rank, check=False).returncode != 0)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
print("starts, to meet at", os.environ["MASTER_ADDR"], flush=True)
time.sleep(0 if "SLURM_RESTART_COUNT" in os.environ else 600)
