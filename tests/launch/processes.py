"""Processes by what /proc says of them, told apart even where a pid is used again."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Known(NamedTuple):
    """A process by pid and start time (clock ticks since boot): a pid alone may be reused."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Known | None":
        """The process that has this pid now; None if there is none or it is a zombie."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields and fields[0] != "Z" else None

    @property
    def alive(self) -> bool:
        return Known.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signal this process and no other that has its pid by now."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def processes() -> Iterator[tuple[Known, int]]:
    """Every process and its parent's pid."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (known := Known.of(int(folder.name))):
            fields = _stat(known.pid)
            if fields:
                yield known, int(fields[1])


def with_descendants(chosen: Iterable[Known], parents: dict[Known, int]) -> list[Known]:
    """These processes and all that they started, as far as parents tell."""
    found = {process.pid: process for process in chosen}
    while True:
        more = {p.pid: p for p, parent in parents.items() if parent in found} | found
        if len(more) == len(found):
            return list(found.values())
        found = more


def command(pid: int) -> list[str]:
    """Its command line; empty if it is gone or somebody else's."""
    return _strings(Path(f"/proc/{pid}/cmdline"))


def environment(pid: int) -> set[str]:
    """NAME=VALUE as it was started with; empty if it is gone or somebody else's."""
    return set(_strings(Path(f"/proc/{pid}/environ")))


def name(pid: int) -> str:
    """The name of its program, cut to 15 characters."""
    return next(iter(_strings(Path(f"/proc/{pid}/comm"))), "").strip()


def open_files(pid: int) -> set[Path]:
    """What it has open, and where it works; empty if it is gone or somebody else's."""
    found = set()
    with contextlib.suppress(OSError):
        for link in [*Path(f"/proc/{pid}/fd").iterdir(), Path(f"/proc/{pid}/cwd")]:
            with contextlib.suppress(OSError):
                found.add(link.readlink())
    return found


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (proc(5) counts it as the third field)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _strings(file: Path) -> list[str]:
    try:
        return file.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
