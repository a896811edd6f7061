"""Checks on the login node before anything is queued.

Each takes the request and the run's folder and gives sentences with their cures; all are shown
together.
"""

import os
import re
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import WriteError
from kaizen_dist.common.files import existing
from kaizen_dist.launch import slurm
from kaizen_dist.launch.resources import Resources
from kaizen_dist.launch.slurm import Node, Partition

_LOCAL_DISK = re.compile("btrfs|devtmpfs|exfat|ext[234]|f2fs|overlay|ramfs|tmpfs|xfs")
"""File systems that only one machine sees."""
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_START_SECONDS = 60
"""What a job needs for itself before its first step."""
_PROBE_BYTES = 16 * 2**20


def unfit_places(root: Path, stream: str, container: bool) -> Iterator[str]:
    """Why a batch script, or the names of Slurm's files, cannot hold the paths of a run and its
    stream; `container`: whether they are bound into one."""
    for name, place in (("--out", str(root)), ("--stream", stream)):
        if one_line(place) != place:
            yield (
                f"{name} {one_line(place)}: a line break or another control character is not "
                "allowed in the path of a job's files; name another folder"
            )
        bound = container and "://" not in place
        if marks := [mark for mark in ":," if bound and mark in place]:
            yield f"{name} {place}: a folder with {marks[0]} cannot be bound into a container"
    if marks := [mark for mark in "%\\" if mark in str(root)]:
        yield (
            f"--out {one_line(root)}: Slurm takes {marks[0]} in the name of a log for a pattern, "
            "and the logs would be lost; name another folder"
        )


def problems(asked: Resources) -> list[str]:
    """What of the request does not fit this cluster; asks Slurm.

    Raises:
        UsageError: if there is no such partition.
    """
    partition = slurm.partition(asked.partition)
    if asked.follow_partition is not None:
        slurm.partition(asked.follow_partition)
    return [*_misfits(asked, partition, slurm.nodes(partition.nodes))]


def _misfits(asked: Resources, partition: Partition, nodes: Sequence[Node]) -> Iterator[str]:
    where = f"partition {partition.name}"
    if not partition.up:
        yield f"partition: {partition.name} is not up, jobs in it would wait (sinfo shows others)"
    limit = partition.max_minutes
    if limit is not None and asked.minutes > limit:
        yield f"time: {asked.time} is longer than the {limit} minutes that {where} allows"
    if asked.minutes * 60 <= asked.signal_seconds + _START_SECONDS:
        yield (
            f"time: of {asked.time} nothing is left to train in, {asked.signal_seconds} s before "
            "the end the run saves and exits; make time longer or signal_seconds shorter"
        )
    fitting = [node for node in nodes if node.name not in asked.exclude]
    if asked.nodes > len(fitting):
        yield f"nodes: {asked.nodes} are more than the {len(fitting)} of {where}"
    if not fitting:
        return
    gpus, cpus = max(node.gpus for node in fitting), max(node.cpus for node in fitting)
    memory = max(node.memory_mb for node in fitting)
    if asked.gpus_per_node > gpus:
        yield f"gpus_per_node: {asked.gpus_per_node} are more than the {gpus} of a node in {where}"
    wanted = asked.ranks * asked.cpus_per_task
    if wanted > cpus:
        yield (
            f"cpus_per_task: {asked.ranks} ranks a node with {asked.cpus_per_task} each are more "
            f"than the {cpus} CPUs of a node in {where}"
        )
    if asked.mem is not None and megabytes(asked.mem) > memory:
        yield f"mem: {asked.mem} is more than the {memory} MB of a node in {where}"


def megabytes(mem: str) -> int:
    """Memory as Slurm writes it (64G, 500M, 1T; plain numbers are MB); 0 for any other text."""
    factors = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
    number, unit = mem.rstrip("bB"), "M"
    if number and number[-1].upper() in factors:
        number, unit = number[:-1], number[-1].upper()
    return int(float(number) * factors[unit]) if number.replace(".", "", 1).isdigit() else 0


def disk_problem(run: Path, asked: Resources, nodes: Sequence[Node] | None = None) -> str | None:
    """Why other nodes would not see a run's folder, as far as this machine knows."""
    if asked.shared_disk:
        return None
    kind = file_system(run)
    if not _LOCAL_DISK.fullmatch(kind):
        return None
    here = socket.gethostname().partition(".")[0]
    others = [n for n in nodes or slurm.nodes() if n.hostname.partition(".")[0] != here]
    if not others:
        return None
    return (
        f"--out {run} lies on a disk of this machine ({kind}), which {others[0].name} does not "
        "see; name a folder on a shared file system, or set shared_disk: true if it is one"
    )


def file_system(path: Path) -> str:
    """The type of the file system that a path, which need not exist yet, lies on."""
    place = existing(path)
    found, longest = "", -1
    for mount, kind in mounts(Path("/proc/self/mountinfo").read_bytes()):
        if place.is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = kind, len(mount.parts)
    return found


def mounts(table: bytes) -> Iterator[tuple[Path, str]]:
    """Places and types of file systems in /proc/self/mountinfo; any user may mount one, of any
    name."""
    for line in table.split(b"\n"):
        before, _, after = line.partition(b" - ")
        if len(fields := before.split(b" ")) > 4 and after:
            name = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), fields[4])
            yield Path(os.fsdecode(name)), os.fsdecode(after.split(b" ")[0])


def check_room(run: Path, needed: int) -> None:
    """That a run's folder can be written, and holds `needed` bytes more.

    Raises:
        WriteError: naming what is missing. A quota shows only where it is nearly reached.
    """
    place = existing(run)
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    if free < needed:
        raise WriteError(
            f"{place} has {free / 1e9:.1f} GB left, and the checkpoints of this run alone take "
            f"{needed / 1e9:.1f} GB; free space, or name another folder with --out"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".kaizen-", suffix=".tmp") as probe:
            os.posix_fallocate(probe.fileno(), 0, _PROBE_BYTES)
    except OSError as error:
        raise WriteError(
            f"cannot write {_PROBE_BYTES >> 20} MB into {place}: {error.strerror}; free space or "
            "quota, correct the permissions, or name another folder with --out"
        ) from error
