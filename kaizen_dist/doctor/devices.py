"""GPUs as the driver and as torch see them, cores as the system and the queue grant them.

The driver is asked first, through `nvidia-smi` in a process of its own: one that hangs would
otherwise take this process with it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kaizen_dist.doctor.report import Finding, fail_if, judged, warn_if

GROUP = "devices"
_SMI_SECONDS = 15.0
_SMI = ("nvidia-smi", "--query-gpu=driver_version,memory.used", "--format=csv,noheader,nounits")
_SMI_NO_DEVICES = 6
_GIB = 2**30


class DriverGpu(NamedTuple):
    """A GPU as the driver lists it."""

    driver: str
    mib_used: int


class TorchGpu(NamedTuple):
    """A GPU as torch sees it."""

    name: str
    bytes: int
    capability: tuple[int, int]


def devices(local_ranks: int) -> Iterator[Finding]:
    """All of them, for this many ranks of this machine."""
    try:
        listed = _listed()
    except subprocess.TimeoutExpired:
        value = f"nvidia-smi gives no answer within {_SMI_SECONDS:g} s"
        cure = "the driver hangs: see dmesg for Xid, drain the node and reboot it"
        yield Finding(GROUP, "GPUs", "fail", value, cure)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        told = error.stdout if isinstance(error, subprocess.CalledProcessError) else str(error)
        value = f"nvidia-smi fails: {(told.splitlines() or [''])[0]}"
        cure = "expected where there are no GPUs; elsewhere install or load the driver"
        yield Finding(GROUP, "GPUs", "warn", value, cure)
    else:
        yield from _gpus(listed)
    yield cores(os.cpu_count() or 1, len(os.sched_getaffinity(0)), _quota(), local_ranks)
    yield load(os.getloadavg()[0], os.cpu_count() or 1)


def _gpus(listed: list[DriverGpu]) -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(GROUP, "GPUs", "fail", f"torch does not load: {error}", "see versions")
        return
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    seen = [TorchGpu(f.name, f.total_memory, (f.major, f.minor)) for f in found]
    yield gpus(listed, seen, torch.version.cuda, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if seen:
        driver = listed[0].driver if listed else "unknown"
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        value = f"runtime {torch.version.cuda}, driver {driver}, NCCL {nccl}"
        yield Finding(GROUP, "CUDA", "ok", value)


def gpus(
    listed: list[DriverGpu], seen: list[TorchGpu], runtime: str | None, visible: str | None
) -> Finding:
    """The finding on GPUs; `runtime` is torch's CUDA, `visible` those that it may use."""
    facts = {"listed": len(listed), "gpus": [gpu._asdict() for gpu in seen]}
    if seen:
        kinds = sorted({_described(gpu) for gpu in seen})
        busy = [str(number) for number, gpu in enumerate(listed) if gpu.mib_used > 1024]
        value = f"{len(seen)} x {' / '.join(kinds)}"
        value += f"; memory in use on GPU {', '.join(busy)}" if busy and len(kinds) == 1 else ""
        cure = "the slowest sets the pace: choose equal ones with CUDA_VISIBLE_DEVICES"
        others = "another program computes there: nvidia-smi names it"
        rules = warn_if(len(kinds) > 1, cure), warn_if(busy, others)
        return judged(GROUP, "GPUs", value, facts, *rules)
    if not listed:
        return Finding(GROUP, "GPUs", "ok", "none: ranks compute on CPUs, over gloo", facts=facts)
    hidden = f"CUDA_VISIBLE_DEVICES={visible!r} hides them; unset it, or ask the queue for GPUs"
    old = f"torch is built for CUDA {runtime}: update the driver {listed[0].driver}"
    return judged(
        GROUP,
        "GPUs",
        f"{len(listed)} by the driver, none by torch",
        facts,
        warn_if(visible is not None, hidden),
        fail_if(runtime is None, "this torch is built for CPUs: install one built for CUDA"),
        fail_if(True, old),
    )


def _described(gpu: TorchGpu) -> str:
    major, minor = gpu.capability
    # From capability 8.0 on the units compute in bf16 themselves.
    precision = "bf16" if major >= 8 else "no bf16, take parallel.precision=fp16"
    return f"{gpu.name}, {gpu.bytes / _GIB:.0f} GiB, capability {major}.{minor}, {precision}"


def cores(there: int, allowed: int, quota: float | None, local_ranks: int) -> Finding:
    """Cores of the machine, those this process may use, and the CPU time it may use."""
    limit = quota if quota and quota < allowed else None
    value = f"{allowed} of {there} cores"
    value += f", but {limit:g} by the container's quota" if limit else ""
    bound, crowded = allowed == 1 < there, local_ranks > allowed
    if not (limit or bound):
        value += f" for {local_ranks} ranks" if crowded else ""
        if not crowded and local_ranks > 1:
            value += f", {allowed // local_ranks} for each of {local_ranks} ranks"
        omp = os.environ.get("OMP_NUM_THREADS")
        value += f" (OMP_NUM_THREADS={omp})" if omp and not crowded else ""
    return judged(
        GROUP,
        "CPU",
        value,
        {"cores": there, "allowed": allowed, "quota": quota},
        warn_if(bound, "the process is bound to one core: under Slurm, srun --cpus-per-task=N"),
        warn_if(
            limit,
            f"train.threads={max(1, int((limit or 1) / local_ranks))}, or a larger quota",
        ),
        warn_if(crowded, f"start at most {allowed} ranks here"),
    )


def load(average: float, there: int) -> Finding:
    """Whether others compute here; `average` is the runnable processes, over a minute."""
    cure = "others compute here too; speeds below are not this machine's"
    rule = warn_if(average > 1.5 * there, cure)
    return judged(GROUP, "load", f"{average:.1f} over the last minute", {"load": average}, rule)


def _listed() -> list[DriverGpu]:
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
    return [DriverGpu(driver, int(used) if used.isdigit() else 0) for driver, used in rows]


def _quota() -> float | None:
    """Cores' worth of CPU time that the control group allows; None = all."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None
