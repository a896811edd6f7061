"""What the system lets a run have: disk, shared memory, memory, open files, locked memory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from kaizen_dist.common.files import existing
from kaizen_dist.doctor.finding import Finding, gigabytes, graded

GROUP = "limits"
SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written to
_INFINIBAND = Path("/sys/class/infiniband")
_FILES = 10_000
_UNLIMITED = resource.RLIM_INFINITY


def limits(out: Path, local_ranks: int, ranks: int) -> Iterator[Finding]:
    """All of them, for runs in the folder `out`, on so many ranks of this machine and in all."""
    yield disk(existing(out))
    yield shared_memory(SHM)
    yield memory(_available_memory(), local_ranks)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE), ranks)
    devices = sorted(path.name for path in _INFINIBAND.glob("*"))
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], devices)


def disk(folder: Path) -> Finding:
    """Room and rights where runs are to be written."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    facts = {"folder": str(folder), "bytes_free": free, "files_free": status.f_favail}
    if not os.access(folder, os.W_OK | os.X_OK):
        cure = "name a folder that you may write to with --out"
        return Finding(GROUP, "disk", "fail", f"{folder} cannot be written to", cure, facts)
    # A file system without a fixed number of files says 0 of 0.
    if status.f_files and status.f_favail < _FILES:
        value = f"room for {status.f_favail} files at {folder}"
        cure = "remove small files there; a run writes some hundred"
        return Finding(GROUP, "disk", "warn", value, cure, facts)
    value = f"{gigabytes(free)} free at {folder}"
    cure = "free space, or keep runs elsewhere (--out); checkpoint.keep_last says how many stay"
    return Finding(GROUP, "disk", graded(free, warn=10e9, fail=1e9), value, cure, facts)


def shared_memory(folder: Path) -> Finding:
    """Room in /dev/shm, by which NCCL's ranks of one machine and worker processes speak."""
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
        return Finding(GROUP, "memory", "ok", "not told by this system")
    value = f"{gigabytes(available)} available"
    value += f" to {local_ranks} ranks" if local_ranks > 1 else ""
    cure = "start fewer ranks here, or ask the queue for more (--mem); a rank takes about 2 GB"
    state = graded(available, warn=2e9 * local_ranks, fail=0)
    return Finding(GROUP, "memory", state, value, cure, {"bytes_available": available})


def open_files(soft: int, hard: int, ranks: int) -> Finding:
    """How many files and sockets a process may have open (ulimit -n).

    A rank keeps 64 shards of a task open, and rank 0 a few sockets to every other rank.
    """
    shown, facts = f"{soft:,} (ulimit -n)", {"soft": soft, "hard": hard}
    if soft == _UNLIMITED:
        return Finding(GROUP, "open files", "ok", "unlimited", facts=facts)
    state = graded(soft, warn=max(1024, 512 + 8 * ranks), fail=256 + 8 * ranks)
    cure = "raise nofile in /etc/security/limits.conf, or in the container's settings"
    if hard == _UNLIMITED or hard > soft:
        cure = f"before the run: ulimit -n {65536 if hard == _UNLIMITED else hard}"
    return Finding(GROUP, "open files", state, shown, cure, facts)


def locked_memory(soft: int, devices: list[str]) -> Finding:
    """How much memory may be locked, which RDMA needs; `devices` are the machine's RDMA devices."""
    name, facts = "locked memory", {"soft": soft, "rdma_devices": devices}
    shown = "unlimited" if soft == _UNLIMITED else gigabytes(soft)
    if not devices:
        return Finding(GROUP, name, "ok", f"{shown}; no RDMA device needs it", facts=facts)
    value = f"{shown}, for {', '.join(devices)}"
    if soft == _UNLIMITED:
        return Finding(GROUP, name, "ok", value, facts=facts)
    cure = (
        "NCCL cannot register its buffers: memlock unlimited in /etc/security/limits.conf, or "
        "LimitMEMLOCK=infinity for slurmd"
    )
    return Finding(GROUP, name, graded(soft, warn=float("inf"), fail=1e9), value, cure, facts)


def _available_memory() -> int | None:
    """Bytes that can still be had, by the system and by the control group this process is in."""
    known = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(1024 * int(line.split()[1]))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            known.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # either source may be missing
    return min(known, default=None)
