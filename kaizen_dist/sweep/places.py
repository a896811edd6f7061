"""Where the runs of a sweep run: an interface, and this machine.

A place is given a `Job`, the command of one run, and hands back something that can be asked
whether it has ended. `runner` knows nothing else of it, so that a cluster's queue is one more
class here.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kaizen_dist.engine.tied import tied
from kaizen_dist.files import cannot_write, make_folder


@dataclass(frozen=True)
class Job:
    """One run to be done."""

    name: str
    arguments: tuple[str, ...]
    """Of `kaizen-dist`; the same command again goes on with the run."""
    threads: int
    """As `train.threads`; 0 = the place shares out its cores."""
    log: Path
    """What it says is added to this file."""
    lock: Path
    """Held for as long as anything of the run is alive, whoever started it."""


class Running(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None:
        """End it at once; its last checkpoint stands."""
        ...


class Place(Protocol):
    """Somewhere runs run."""

    @property
    def capacity(self) -> int:
        """How many at a time."""
        ...

    def start(self, job: Job) -> Running | None:
        """Start a run; None while its lock is held, by what an earlier sweep left behind.

        Raises:
            WriteError: the log or the lock cannot be written.
        """
        ...


class LocalPlace:
    """This machine: `jobs` runs at a time of `procs` ranks each, the cores and GPUs shared out."""

    def __init__(self, jobs: int, procs: int = 1, devices: Sequence[str] = ()) -> None:
        self.capacity = jobs
        self._procs = procs
        self._devices = devices
        """As CUDA_VISIBLE_DEVICES names them."""
        self._slots: list[LocalRun | None] = [None] * jobs

    def start(self, job: Job) -> "LocalRun | None":
        slot = next(i for i, r in enumerate(self._slots) if r is None or r.poll() is not None)
        try:
            make_folder(job.lock.parent)
            make_folder(job.log.parent)
            with job.lock.open("w") as lock, job.log.open("ab") as log:
                try:
                    # The lock is the open file's: it passes to the child, and ends with the last.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                process = subprocess.Popen(
                    self._command(job),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | self._environment(slot),
                    pass_fds=[lock.fileno()],
                    # Ctrl-C in a terminal is for the sweep, which tells its runs to save.
                    start_new_session=True,
                )
        except OSError as error:
            raise cannot_write(job.log, error) from error
        self._slots[slot] = LocalRun(process)
        return self._slots[slot]

    def _command(self, job: Job) -> list[str]:
        cores = len(os.sched_getaffinity(0)) // (self.capacity * self._procs)
        threads = job.threads or max(1, cores)
        own = [f"train.threads={threads}", "--procs", str(self._procs)]
        return tied([sys.executable, "-m", "kaizen_dist", *job.arguments, *own])

    def _environment(self, slot: int) -> dict[str, str]:
        """A slot has GPUs of its own, as far as they go round."""
        if not self._devices:
            return {}
        numbers = (slot * self._procs + rank for rank in range(self._procs))
        own = dict.fromkeys(self._devices[n % len(self._devices)] for n in numbers)
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


class LocalRun:
    """A child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """With all that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return [d for d in named.split(",") if d][:count] or [str(i) for i in range(count)]
