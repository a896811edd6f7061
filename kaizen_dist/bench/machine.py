"""The machine of a benchmark: versions, processor, memory, and the speed of a matrix product."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaizen_dist import __version__

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "webdataset", "pillow", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, load (runnable processes, mean of the last minute) and versions
    (None: not installed), as plain data."""
    import torch

    from kaizen_dist.views.choose import resolve

    versions = {name: version_of(name) for name in _PACKAGES}
    if resolve("auto") == "dali":
        from nvidia import dali

        versions["dali"] = dali.__version__
    names = _lines("/proc/cpuinfo", "model name")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "kaizen-dist": __version__,
        **versions,
    }


def version_of(package: str) -> str | None:
    """The installed version of a package; None: not installed, or a copy without metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def resident_bytes(*, peak: bool = False) -> int | None:
    """Resident memory of this process, now or at its peak; None: unknown on this system."""
    found = _lines("/proc/self/status", "VmHWM" if peak else "VmRSS")
    return 1024 * int(found[0].split()[0]) if found else None


def peak_flops(device: "torch.device", precision: str) -> tuple[float, float]:
    """Operations a second, and a CPU second, of a large matrix product in a precision; the best
    of three.

    Large means some 0.1 s: a CPU without instructions for bf16 is a thousand times slower.
    """
    side, largest = 128, 8192 if device.type == "cuda" else 2048
    while True:
        wall, cpu = product_seconds(device, precision, side)
        if wall >= 0.1 or side == largest:
            return 2 * side**3 / wall, 2 * side**3 / cpu
        side *= 2


def product_seconds(device: "torch.device", precision: str, side: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, of a product of two square matrices: the best of three after a
    warm-up."""
    import torch

    from kaizen_dist.common.device_clock import synchronise

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    walls, cpus = [], []
    for _ in range(4):
        wall, cpu = time.perf_counter(), time.process_time()
        a @ b
        synchronise(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls[1:]), min(cpus[1:])


def _lines(path: str, name: str) -> list[str]:
    """The values of the lines "NAME: value" of a file of /proc."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() == name]
