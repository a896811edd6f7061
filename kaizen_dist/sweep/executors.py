"""Executors start the runs of a sweep: the interface, and the one for this machine.

An executor is given a `SweepJob`, one run, and returns a handle that can be polled. `runner` knows
nothing else of it. slurm.py has the executor for a cluster's queue.
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

from kaizen_dist.common.files import make_folder, open_append, open_to_read, writing
from kaizen_dist.config import Config
from kaizen_dist.distributed.die_with_parent import die_with_parent

_TAIL_BYTES = 65536


@dataclass(frozen=True)
class SweepJob:
    """One run to be started."""

    config: Config
    file: Path
    """Where the configuration is written."""
    stream: str
    out: Path
    """The run's folder."""
    log: Path
    """Its output on this machine is appended to this file."""
    lock: Path
    """Held while any process of the run is alive on this machine, whoever started it."""


class RunHandle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def note(self) -> str:
        """Its latest message, for people; may be empty."""

    def error(self) -> str:
        """The reason of an end other than 0."""

    def stop(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """End it at once; its last checkpoint stays."""


class Executor(Protocol):
    """Starts runs."""

    capacity: int
    """Runs at a time."""
    world_size: int
    """Ranks of a run."""
    detached: bool
    """Whether runs go on when the sweep ends."""

    def problems(self, out: Path) -> list[str]:
        """Everything that is known to prevent runs in this folder."""

    def start(self, job: SweepJob) -> RunHandle | None:
        """Start a run; None while a process that an earlier sweep started for it is alive.

        Raises:
            WriteError: the log or the lock cannot be written.
        """


class LocalExecutor:
    """This machine: `jobs` runs at a time of `procs` ranks each, which share cores and GPUs."""

    detached = False

    def __init__(self, jobs: int, procs: int = 1, devices: Sequence[str] = ()) -> None:
        self.capacity = jobs
        self.world_size = procs
        self._devices = devices
        """As CUDA_VISIBLE_DEVICES names them."""
        self._slots: list[LocalRun | None] = [None] * jobs

    def problems(self, out: Path) -> list[str]:  # noqa: ARG002 - any folder will do
        return []

    def start(self, job: SweepJob) -> "LocalRun | None":
        slot = next(i for i, r in enumerate(self._slots) if r is None or r.poll() is not None)
        cores = len(os.sched_getaffinity(0)) // (self.capacity * self.world_size)
        threads = job.config.train.threads or max(1, cores)
        own = [f"train.threads={threads}", "--procs", str(self.world_size), "--no-summary"]
        command = ["train", str(job.file), "--stream", job.stream, "--out", str(job.out), *own]
        for file in (job.lock, job.log):
            make_folder(file.parent)
        with (
            writing(job.log),
            os.fdopen(open_append(job.lock), "ab") as lock,
            os.fdopen(open_append(job.log), "ab") as log,
        ):
            begins = log.seek(0, os.SEEK_END)
            try:
                # The lock belongs to the open file: the child inherits it, and it is released when
                # the last process that has it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            process = subprocess.Popen(
                die_with_parent([sys.executable, "-m", "kaizen_dist", *command]),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | self._environment(slot),
                pass_fds=[lock.fileno()],
                # Ctrl-C in a terminal is for the sweep, which tells its runs to save.
                start_new_session=True,
            )
        self._slots[slot] = LocalRun(process, job.log, begins)
        return self._slots[slot]

    def _environment(self, slot: int) -> dict[str, str]:
        """GPUs of a slot: its own ones, as far as they go round."""
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

    def note(self) -> str:
        return last_line(self._log, self._begins)

    def error(self) -> str:
        return last_error(self._log, self._begins)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """With all of its child processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return [d for d in named.split(",") if d][:count] or [str(i) for i in range(count)]


def last_error(log: Path, begins: int = 0) -> str:
    """The last error in a log since byte `begins`, or else the last line."""
    lines = _tail(log, begins)
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]


def last_line(log: Path, begins: int = 0) -> str:
    """The last line of a log since byte `begins`; empty where there is none."""
    return (_tail(log, begins) or [""])[-1]


def _tail(log: Path, begins: int) -> list[str]:
    """The lines at the end of a log that are not blank."""
    try:
        with open_to_read(log, follow=False) as file:
            file.seek(max(begins, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
