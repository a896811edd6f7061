"""Limits of the system: disk, shared memory, memory, open files, locked memory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from kaizen_dist.common.files import existing
from kaizen_dist.doctor.report import Finding, fail_if, gigabytes, graded, judged, warn_if

GROUP = "limits"
SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_INFINIBAND = Path("/sys/class/infiniband")
_CGROUP = Path("/sys/fs/cgroup")
_FILES = 10_000
_UNLIMITED = resource.RLIM_INFINITY


def limits(out: Path, local_ranks: int, ranks: int) -> Iterator[Finding]:
    """All of them, for runs in `out`, with `local_ranks` ranks here and `ranks` in all."""
    yield disk(existing(out))
    yield shared_memory(SHM)
    yield memory(_available_memory(), local_ranks)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE), ranks)
    devices = sorted(path.name for path in _INFINIBAND.glob("*"))
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], devices)


def disk(folder: Path) -> Finding:
    """Free space and permissions where runs are to be written."""
    status = os.statvfs(folder)
    free, locked = status.f_bavail * status.f_frsize, not os.access(folder, os.W_OK | os.X_OK)
    # A file system without a fixed number of files says 0 of 0.
    few = status.f_files and status.f_favail < _FILES
    value = f"{gigabytes(free)} free at {folder}"
    if locked or few:
        value = f"room for {status.f_favail} files at {folder}"
        value = f"{folder} cannot be written to" if locked else value
    space = "free space, or keep runs elsewhere (--out); checkpoint.keep_last says how many stay"
    return judged(
        GROUP,
        "disk",
        value,
        {"folder": str(folder), "bytes_free": free, "files_free": status.f_favail},
        fail_if(locked, "name a folder that you may write to with --out"),
        warn_if(few, "remove small files there; a run writes some hundred"),
        (True, graded(free, warn=10e9, fail=1e9), space),
    )


def shared_memory(folder: Path) -> Finding:
    """Free space in /dev/shm, through which NCCL's ranks of one machine and worker processes
    communicate."""
    try:
        status = os.statvfs(folder)
    except OSError as error:
        value = f"{folder}: {error.strerror}"
        return Finding(GROUP, "shared memory", "fail", value, f"mount a tmpfs at {folder}")
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    facts = {"folder": str(folder), "bytes": size, "bytes_free": free}
    value = f"{gigabytes(free)} free of {gigabytes(size)} in {folder}"
    cure = "give the container more: docker run --shm-size=8g, or --ipc=host"
    return Finding(GROUP, "shared memory", graded(free, warn=1e9, fail=16e6), value, cure, facts)


def memory(available: int | None, local_ranks: int) -> Finding:
    """Main memory for each rank of this machine."""
    if available is None:
        return Finding(GROUP, "memory", "ok", "unknown on this system")
    value = f"{gigabytes(available)} available"
    value += f" to {local_ranks} ranks" if local_ranks > 1 else ""
    cure = "start fewer ranks here, or ask the queue for more (--mem); a rank takes about 2 GB"
    state = graded(available, warn=2e9 * local_ranks, fail=0)
    return Finding(GROUP, "memory", state, value, cure, {"bytes_available": available})


def open_files(soft: int, hard: int, ranks: int) -> Finding:
    """Limit of open files and sockets of a process (ulimit -n).

    A rank keeps 64 shards of a task open, and rank 0 a few sockets to every other rank.
    """
    amount = float("inf") if soft == _UNLIMITED else soft
    value = "unlimited" if soft == _UNLIMITED else f"{soft:,} (ulimit -n)"
    state = graded(amount, warn=max(1024, 512 + 8 * ranks), fail=256 + 8 * ranks)
    cure = "raise nofile in /etc/security/limits.conf, or in the container's settings"
    if hard == _UNLIMITED or hard > soft:
        cure = f"before the run: ulimit -n {65536 if hard == _UNLIMITED else hard}"
    return Finding(GROUP, "open files", state, value, cure, {"soft": soft, "hard": hard})


def locked_memory(soft: int, devices: list[str]) -> Finding:
    """Limit of locked memory, which RDMA needs; `devices` are the machine's RDMA devices."""
    shown = "unlimited" if soft == _UNLIMITED else gigabytes(soft)
    value = f"{shown}, for {', '.join(devices)}" if devices else f"{shown}; no RDMA device needs it"
    cure = "NCCL cannot register its buffers: memlock unlimited in /etc/security/limits.conf, or "
    cure += "LimitMEMLOCK=infinity for slurmd"
    limited = devices and soft != _UNLIMITED
    rule = (limited, graded(soft, warn=float("inf"), fail=1e9), cure)
    return judged(GROUP, "locked memory", value, {"soft": soft, "rdma_devices": devices}, rule)


def _available_memory() -> int | None:
    """Bytes available, by the system and by the control group of this process."""
    known = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(1024 * int(line.split()[1]))
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            known.append(int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # either source may be missing
    return min(known, default=None)
