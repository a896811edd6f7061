"""Where the runs of a sweep run: an interface, and this machine.

A place is given a `Job`, one run, and hands back something that can be asked whether it has
ended. `runner` knows nothing else of it. A cluster's queue is another place (slurm.py).
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from kaizen_dist.common.files import cannot_write, make_folder, open_append
from kaizen_dist.config import Config
from kaizen_dist.distributed.die_with_parent import die_with_parent
from kaizen_dist.sweep.log_tail import last_error, last_line


@dataclass(frozen=True)
class Job:
    """One run to be done."""

    name: str
    config: Config
    file: Path
    """Where the configuration is written."""
    stream: str
    out: Path
    """The run's folder."""
    log: Path
    """What it says on this machine is added to this file."""
    lock: Path
    """Held for as long as anything of the run is alive on this machine, whoever started it."""

    @property
    def arguments(self) -> list[str]:
        """Of `kaizen-dist`; the same command again goes on with the run."""
        places = ["--stream", self.stream, "--out", str(self.out), "--no-summary"]
        return ["train", str(self.file), *places]


class Running(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        ...

    def says(self) -> str:
        """The last that was heard of it, for people; may be empty."""
        ...

    def error(self) -> str:
        """Why it ended as it did, if that was no good end."""
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

    @property
    def world_size(self) -> int:
        """Ranks of a run."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether runs go on when the sweep is told to end."""
        ...

    def problems(self, out: Path) -> list[str]:
        """All that can be known to stand against runs in this folder."""
        ...

    def start(self, job: Job) -> Running | None:
        """Start a run; None while an earlier sweep's start of it is still alive.

        Raises:
            WriteError: the log or the lock cannot be written.
        """
        ...


class LocalPlace:
    """This machine: `jobs` runs at a time of `procs` ranks each, the cores and GPUs shared out."""

    keeps = False

    def __init__(self, jobs: int, procs: int = 1, devices: Sequence[str] = ()) -> None:
        self.capacity = jobs
        self.world_size = procs
        self._devices = devices
        """As CUDA_VISIBLE_DEVICES names them."""
        self._slots: list[LocalRun | None] = [None] * jobs

    def problems(self, out: Path) -> list[str]:  # noqa: ARG002 - any folder will do
        return []

    def start(self, job: Job) -> "LocalRun | None":
        slot = next(i for i, r in enumerate(self._slots) if r is None or r.poll() is not None)
        try:
            make_folder(job.lock.parent)
            make_folder(job.log.parent)
            with _appended(job.lock) as lock, _appended(job.log) as log:
                begins = log.seek(0, os.SEEK_END)
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
        self._slots[slot] = LocalRun(process, job.log, begins)
        return self._slots[slot]

    def _command(self, job: Job) -> list[str]:
        cores = len(os.sched_getaffinity(0)) // (self.capacity * self.world_size)
        threads = job.config.train.threads or max(1, cores)
        own = [f"train.threads={threads}", "--procs", str(self.world_size)]
        return die_with_parent([sys.executable, "-m", "kaizen_dist", *job.arguments, *own])

    def _environment(self, slot: int) -> dict[str, str]:
        """A slot has GPUs of its own, as far as they go round."""
        if not self._devices:
            return {}
        numbers = (slot * self.world_size + rank for rank in range(self.world_size))
        own = dict.fromkeys(self._devices[n % len(self._devices)] for n in numbers)
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


class LocalRun:
    """A child process, and its part of a log, from byte `begins` on."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, begins: int) -> None:
        self._process = process
        self._log, self._begins = log, begins

    def poll(self) -> int | None:
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def says(self) -> str:
        return last_line(self._log, self._begins)

    def error(self) -> str:
        return last_error(self._log, self._begins)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """With all that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _appended(path: Path) -> BinaryIO:
    """A file that is added to, and no link to one. Raises OSError."""
    return os.fdopen(open_append(path), "ab")


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return [d for d in named.split(",") if d][:count] or [str(i) for i in range(count)]
