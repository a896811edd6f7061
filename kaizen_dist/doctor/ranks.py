"""What every rank measures of itself, so that the one that is out of line is found.

In comes a `RankContext`, out comes a `RankFacts` of every rank, the same list on all of them. Ranks
of one kind of machine should differ by little; `judging.py` says which do not.
"""

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import kaizen_dist
from kaizen_dist.common.files import existing
from kaizen_dist.common.threads import within
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.stream.manifest import MANIFEST
from kaizen_dist.stream.remote import is_url

_SIDE = {"cpu": 768, "cuda": 8192}
_SECONDS = 0.4
_DISK_BYTES = 32 << 20
_DISK_SECONDS = 20.0


@dataclass(frozen=True)
class RankFacts:
    """One rank, as it sees itself."""

    rank: int
    host: str
    package: str
    torch: str
    device: str
    flops: float
    """Floating-point operations a second of a matrix product: float32 on a CPU, bf16 on a GPU."""
    disk_bytes_per_second: float | None = None
    """Written and flushed where runs are kept; of one rank a machine, None of the others."""
    stream_sha256: str | None = None
    """Of its stream.json; None: not asked for, or not seen."""
    stream_problem: str = ""


def host_name() -> str:
    """This machine's name: the one Slurm knows it by, where it runs under Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def local_rank() -> int:
    """This rank among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def measure_ranks(context: RankContext, out: Path, stream: str | None) -> list[RankFacts]:
    """The facts of all ranks, in rank order; all of them measure at the same time."""
    context.barrier()
    sha256, problem = _stream_digest(stream)
    mine = RankFacts(
        rank=context.rank,
        host=host_name(),
        package=kaizen_dist.__version__,
        torch=torch.__version__,
        device=_device_name(context.device),
        flops=_flops(context.device),
        disk_bytes_per_second=_disk_speed(out) if local_rank() == 0 else None,
        stream_sha256=sha256,
        stream_problem=problem,
    )
    return context.exchange(mine)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _flops(device: torch.device) -> float:
    """The best of several products of two square matrices."""
    side = _SIDE[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.ones(side, side, dtype=kind, device=device) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * side**3 / _best(multiply)


def _best(work: Callable[[], None]) -> float:
    """Seconds of the fastest of as many turns as fit the time; at least three."""
    turns: list[float] = []
    begun = time.perf_counter()
    while len(turns) < 3 or time.perf_counter() - begun < _SECONDS:
        since = time.perf_counter()
        work()
        turns.append(time.perf_counter() - since)
    return min(turns)


def _disk_speed(out: Path) -> float | None:
    """Bytes a second into a file without a name, which is gone when it is closed; None: cannot."""
    try:
        return within(_DISK_SECONDS, lambda: _write(existing(out)))
    except OSError:  # a TimeoutError is one too; `limits` says what is wrong with the disk
        return None


def _write(folder: Path) -> float:
    content = os.urandom(_DISK_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        begun = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return _DISK_BYTES / (time.perf_counter() - begun)


def _stream_digest(stream: str | None) -> tuple[str | None, str]:
    """(sha256 of stream.json, "") or (None, why not)."""
    if stream is None or is_url(stream):
        return None, ""
    path = Path(stream) / MANIFEST
    try:
        return hashlib.sha256(within(_DISK_SECONDS, path.read_bytes)).hexdigest(), ""
    except OSError as error:
        return None, f"{path}: {error.strerror or error}"
