"""Who makes the views: one interface, two implementations, and the choice between them.

In come encoded images with the parameters of their views, out come views. `tensor.TorchBackend`
does it with Pillow and torch on any machine; `dali.DaliBackend` with NVIDIA DALI, on a GPU or
on the CPU. Both only apply the numbers of `recipe.py`, so their views differ by rounding alone
(docs/benchmarks/dali_parity.md).

The bits of a view do depend on the backend: a run that is to repeat another to the last bit
names its backend (`views.backend=torch`) rather than `auto`, and all ranks use the same one, which
`agreed` sees to.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views.recipe import ViewParameters

CPU = torch.device("cpu")

Name: TypeAlias = Literal["dali", "torch"]


class UndecodableError(Exception):
    """Images of a batch cannot be made into views; whoever knows their names tells them."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"image {i} of the batch: {r}" for i, r in reasons.items()))
        self.reasons = dict(reasons)
        """Why not, by their places in the batch; at least one."""


class Backend(Protocol):
    """Makes views; safe to be asked by several threads at once.

    An answer is a function of the arguments alone: neither earlier calls nor other images of
    the batch matter. Views lie on the backend's device, complete, for the stream that is current
    where they are asked for; whoever hands them to another one says `used_here` there.
    """

    def views(
        self,
        encoded: Sequence[bytes],
        sizes: NDArray[np.int64],
        parameters: tuple[ViewParameters, ViewParameters],
    ) -> Tensor:
        """Both augmented views of n encoded images, normalised, [2, n, 3, size, size] float32.

        `sizes` [n, 2] are the height and width that `parameters` were drawn for.

        Raises:
            UndecodableError: for all images that cannot be decoded whole and to that size.
        """
        ...

    def decode(self, encoded: Sequence[bytes], sizes: NDArray[np.int64]) -> list[Tensor]:
        """n images as pixels, each [height, width, 3] uint8, wherever `views_of` wants them.

        Raises:
            UndecodableError: as `views`.
        """
        ...

    def views_of(
        self, pixels: Sequence[Tensor], parameters: tuple[ViewParameters, ViewParameters]
    ) -> Tensor:
        """What `views` makes of the images that `decode` made `pixels` of, bit for bit."""
        ...

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        """The plain view for evaluation of n encoded images, [n, 3, size, size] float32:
        resized, centre-cropped, normalised.

        Raises:
            UndecodableError: for all images that cannot be decoded whole.
        """
        ...


def used_here(views: Tensor) -> Tensor:
    """Views that were made on a stream of their own, to be used on the current one.

    Without this their memory would be taken for the next ones made there as soon as nothing names
    them, whether or not the current stream has come to read them.
    """
    if views.is_cuda:
        views.record_stream(torch.cuda.current_stream(views.device))
    return views


def wrong_size(expected: tuple[int, int], found: tuple[int, int]) -> str:
    """The reason why an image of another (height, width) than its index says is no good."""
    return "it has {} x {} pixels, the index says {} x {}".format(*found, *expected)


def resolve(name: Literal["auto", "dali", "torch"]) -> Name:
    """The backend that a value of `views.backend` means on this machine.

    `auto` is DALI where it is installed. Raises UsageError for `dali` where it is not.
    """
    return agreed(name, lambda installed: [installed])


def agreed(name: Literal["auto", "dali", "torch"], exchange: Callable[[bool], list[bool]]) -> Name:
    """The backend that a value of `views.backend` means for all ranks, which ask together;
    `exchange` brings what each of them has.

    `auto` is DALI where rank 0 has it.

    Raises:
        UsageError: on all ranks, naming those that are to use DALI and have it not.
    """
    installed = exchange(find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None)
    if name == "torch" or (name == "auto" and not installed[0]):
        return "torch"
    lacking = [str(rank) for rank, there in enumerate(installed) if not there]
    if lacking:
        where = f" for rank {', '.join(lacking)}" if len(installed) > 1 else ""
        raise UsageError(
            f"views.backend: NVIDIA DALI is not installed{where}; "
            "`pip install 'kaizen-dist[dali-cuda13]'` (dali-cuda12 for CUDA 12) brings it, "
            "on machines without a GPU too, and views.backend=torch does without"
        )
    return "dali"


def open_backend(config: ViewsConfig, device: torch.device = CPU) -> Backend:
    """The backend of a configuration, for views on `device`.

    Raises:
        UsageError: if it asks for DALI, and that is not installed.
    """
    if resolve(config.backend) == "dali":
        # DALI takes half a second to import, and is not everywhere.
        from kaizen_dist.views.dali_backend import DaliBackend

        return DaliBackend(config, device)
    from kaizen_dist.views.torch_backend import TorchBackend

    return TorchBackend(config, device)
