"""What a benchmark ran on, and how much memory this process takes."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kaizen_dist import __version__
from kaizen_dist.views.choose import resolve

_STATUS = Path("/proc/self/status")


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, load (processes that ran or wanted to, over the last minute) and
    versions (None where there is no such package), as plain data."""
    packages = ["torch", "torchvision", "webdataset", "pillow", "numpy"]
    versions = {name: _version(name) for name in packages}
    if resolve("auto") == "dali":
        from nvidia import dali

        versions["dali"] = dali.__version__
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "kaizen-dist": __version__,
        **versions,
    }


def resident_bytes(*, peak: bool = False) -> int | None:
    """Memory of this process that lies in RAM, now or at its most; None where it is not told."""
    name = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _processor() -> str:
    """The model's name, where the system tells it; else the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    """The version of a package; None where it is not there, or not as an installed one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
