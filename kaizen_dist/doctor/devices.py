"""GPUs as the driver and as torch see them, cores as the system and the queue grant them.

The driver is asked first, through `nvidia-smi` in a process of its own: one that hangs would
otherwise take this process with it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kaizen_dist.doctor.finding import Finding

GROUP = "devices"
_SMI_SECONDS = 15.0
_SMI = ("nvidia-smi", "--query-gpu=driver_version,memory.used", "--format=csv,noheader,nounits")
_SMI_NO_DEVICES = 6
_GIB = 2**30


@dataclass(frozen=True)
class Listed:
    """What the driver says of a GPU."""

    driver: str
    mib_used: int


@dataclass(frozen=True)
class Seen:
    """What torch says of a GPU."""

    name: str
    bytes: int
    capability: tuple[int, int]


def devices(local_ranks: int) -> Iterator[Finding]:
    """All of them, for so many ranks of this machine."""
    try:
        listed = _listed()
    except subprocess.TimeoutExpired:
        value = f"nvidia-smi gives no answer within {_SMI_SECONDS:g} s"
        cure = "the driver hangs: see dmesg for Xid, drain the node and reboot it"
        yield Finding(GROUP, "GPUs", "fail", value, cure)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        told = error.stdout if isinstance(error, subprocess.CalledProcessError) else str(error)
        value = f"nvidia-smi fails: {(told.splitlines() or [''])[0]}"
        cure = "all is well where there are no GPUs; elsewhere install or load the driver"
        yield Finding(GROUP, "GPUs", "warn", value, cure)
    else:
        yield from _gpus(listed)
    yield cores(os.cpu_count() or 1, len(os.sched_getaffinity(0)), _quota(), local_ranks)
    yield load(os.getloadavg()[0], os.cpu_count() or 1)


def _gpus(listed: list[Listed]) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(GROUP, "GPUs", "fail", f"torch does not load: {error}", "see versions")
        return
    count = torch.cuda.device_count()
    seen = []
    for number in range(count):
        facts = torch.cuda.get_device_properties(number)
        seen.append(Seen(facts.name, facts.total_memory, (facts.major, facts.minor)))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield gpus(listed, seen, torch.version.cuda, hidden)
    if seen:
        driver = listed[0].driver if listed else "unknown"
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        value = f"runtime {torch.version.cuda}, driver {driver}, NCCL {nccl}"
        yield Finding(GROUP, "CUDA", "ok", value)


def gpus(
    listed: list[Listed], seen: list[Seen], runtime: str | None, visible: str | None
) -> Finding:
    """What is to be said of the GPUs; `runtime` is torch's CUDA, `visible` which it may use."""
    facts = {
        "listed": len(listed),
        "gpus": [{"name": g.name, "bytes": g.bytes, "capability": g.capability} for g in seen],
    }
    if not seen:
        return _none_seen(listed, runtime, visible, facts)
    kinds = sorted({_described(gpu) for gpu in seen})
    value = f"{len(seen)} x {' / '.join(kinds)}"
    if len(kinds) > 1:
        cure = "the slowest sets the pace: choose equal ones with CUDA_VISIBLE_DEVICES"
        return Finding(GROUP, "GPUs", "warn", value, cure, facts)
    busy = [number for number, gpu in enumerate(listed) if gpu.mib_used > 1024]
    if busy:
        value += f"; memory in use on GPU {', '.join(map(str, busy))}"
        cure = "another program computes there: nvidia-smi names it"
        return Finding(GROUP, "GPUs", "warn", value, cure, facts)
    return Finding(GROUP, "GPUs", "ok", value, facts=facts)


def _none_seen(
    listed: list[Listed], runtime: str | None, visible: str | None, facts: dict[str, object]
) -> Finding:
    if not listed:
        return Finding(GROUP, "GPUs", "ok", "none: ranks compute on CPUs, over gloo", facts=facts)
    value = f"{len(listed)} by the driver, none by torch"
    if visible is not None:
        cure = f"CUDA_VISIBLE_DEVICES={visible!r} hides them; unset it, or ask the queue for GPUs"
    elif runtime is None:
        cure = "this torch is built for CPUs: install one that is built for CUDA"
    else:
        cure = f"torch is built for CUDA {runtime}: update the driver {listed[0].driver}"
    return Finding(GROUP, "GPUs", "warn" if visible is not None else "fail", value, cure, facts)


def _described(gpu: Seen) -> str:
    major, minor = gpu.capability
    # From capability 8.0 on the units compute in bf16 themselves.
    precision = "bf16" if major >= 8 else "no bf16, take parallel.precision=fp16"
    return f"{gpu.name}, {gpu.bytes / _GIB:.0f} GiB, capability {major}.{minor}, {precision}"


def cores(there: int, allowed: int, quota: float | None, local_ranks: int) -> Finding:
    """Cores of the machine, those this process may use, and how many it may use up at a time."""
    facts = {"cores": there, "allowed": allowed, "quota": quota}
    value = f"{allowed} of {there} cores"
    value += f", but {quota:g} by the container's quota" if quota and quota < allowed else ""
    if allowed == 1 < there:
        cure = "the process is bound to one core: under Slurm, srun --cpus-per-task=N"
        return Finding(GROUP, "CPU", "warn", value, cure, facts)
    if quota and quota < allowed:
        cure = f"train.threads={max(1, int(quota / local_ranks))}, or a larger quota"
        return Finding(GROUP, "CPU", "warn", value, cure, facts)
    if local_ranks > allowed:
        cure = f"start at most {allowed} ranks here"
        return Finding(GROUP, "CPU", "warn", f"{value} for {local_ranks} ranks", cure, facts)
    if local_ranks > 1:
        value += f", {allowed // local_ranks} for each of {local_ranks} ranks"
    omp = os.environ.get("OMP_NUM_THREADS")
    value += f" (OMP_NUM_THREADS={omp})" if omp else ""
    return Finding(GROUP, "CPU", "ok", value, facts=facts)


def load(average: float, there: int) -> Finding:
    """Whether others compute here; `average` is the processes that wanted to, over a minute."""
    value = f"{average:.1f} over the last minute"
    if average > 1.5 * there:
        cure = "others compute here too; speeds below are not this machine's"
        return Finding(GROUP, "load", "warn", value, cure, {"load": average})
    return Finding(GROUP, "load", "ok", value, facts={"load": average})


def _listed() -> list[Listed]:
    """The driver's list; empty where there is no driver.

    Raises:
        SubprocessError, OSError, ValueError: if it does not answer as it should.
    """
    if shutil.which(_SMI[0]) is None:
        return []
    done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    if done.returncode == _SMI_NO_DEVICES:
        return []
    done.check_returncode()
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [Listed(driver, int(used) if used.isdigit() else 0) for driver, used in rows]


def _quota() -> float | None:
    """Cores that the control group lets this process use up; None = all."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None
