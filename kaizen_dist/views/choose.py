"""The choice of a backend: `views.backend` and what is installed decide.

The bits of a view depend on the backend: a run that is to repeat another to the last bit names
its backend (`views.backend=torch`) rather than `auto`, and all ranks use the same one, which
`agreed` ensures.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.backend import CPU, Backend


def resolve(name: Literal["auto", "dali", "torch"]) -> Literal["dali", "torch"]:
    """The backend that a value of `views.backend` selects on this machine.

    `auto` is DALI where it is installed. Raises UsageError for `dali` where it is not.
    """
    return agreed(name, lambda installed: [installed])


def agreed(
    name: Literal["auto", "dali", "torch"], exchange: Callable[[bool], list[bool]]
) -> Literal["dali", "torch"]:
    """The backend that a value of `views.backend` selects for all ranks, which call together;
    `exchange` gathers whether DALI is installed on each of them.

    `auto` is DALI where rank 0 has it.

    Raises:
        UsageError: on all ranks, naming those that need DALI and lack it.
    """
    installed = exchange(find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None)
    if name == "torch" or (name == "auto" and not installed[0]):
        return "torch"
    lacking = [str(rank) for rank, there in enumerate(installed) if not there]
    if lacking:
        where = f" for rank {', '.join(lacking)}" if len(installed) > 1 else ""
        raise UsageError(
            f"views.backend: NVIDIA DALI is not installed{where}; "
            "`pip install 'kaizen-dist[dali-cuda13]'` (dali-cuda12 for CUDA 12) installs it, "
            "on machines without a GPU too, and views.backend=torch needs no DALI"
        )
    return "dali"


def open_backend(config: ViewsConfig, device: torch.device = CPU) -> Backend:
    """The backend of a configuration, for views on `device`.

    Raises:
        UsageError: if the configuration asks for DALI and it is not installed.
    """
    if resolve(config.backend) == "dali":
        # DALI takes half a second to import, and is not installed everywhere.
        from kaizen_dist.views.dali_backend import DaliBackend

        return DaliBackend(config, device)
    from kaizen_dist.views.torch_backend import TorchBackend

    return TorchBackend(config, device)
