"""What each process of a several-rank test runs (in a module that a new process can import)."""

import os
import traceback

import torch


def run_rank(function, rank, world, port, environment, arguments, results) -> None:
    """`environment` is that of the test now; a fork server's is of the time when it began."""
    os.environ.clear()
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    try:
        results.put((rank, function(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
