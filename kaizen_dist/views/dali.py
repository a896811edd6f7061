"""The recipe applied by NVIDIA DALI, on a GPU where there is one, else on the CPU.

A DALI pipeline may be used by one thread at a time and keeps its buffers, so there is a small
stock of them: a call takes one, feeds it, waits for the result, copies it out and puts the
pipeline back. As many calls run side by side as there are threads that ask (`Loader.batches`
has `views.workers` of them, each with one core of a CPU pipeline), and a call never sees
what another has fed. Running ahead is the asking threads' business, not a queue's inside DALI,
so that a batch stays a function of its step.

JPEG and PNG of up to 8 bits go to DALI as they are. Everything else (GIF, PPM, 16-bit PNG, ...)
is decoded by Pillow and handed on as a raw bitmap in the same batch: a stream may hold any
format Pillow reads, and such an image is to mean the same for every backend.

What DALI cannot decode kills its pipeline without a name, and a header that it cannot parse
may kill the process (2.4.0). So every header is read first, by DALI's own parser and alone;
what fails later is found by decoding the images of the batch one by one.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import nvimgcodec
from nvidia.dali import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image
from torch import Tensor

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.views import dali_graph, tensor
from kaizen_dist.views.backend import UndecodableError
from kaizen_dist.views.recipe import ViewParameters

MAX_BATCH = 256
"""Images in one run of a pipeline; it bounds the memory. Larger batches take several runs."""

Inputs = Mapping[str, Any]
"""What a pipeline is fed, by name: rows of an array, or a list with an array for each image."""


class DaliBackend:
    """See `views.backend.Backend`."""

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        decoder = "mixed" if device.type == "cuda" else "cpu"
        # One thread each: whoever asks from several threads has as many pipelines.
        options = {"num_threads": 1, "device_id": _gpu(device), "prefetch_queue_depth": 1}
        whole = {"batch_size": MAX_BATCH, **options}
        self._two_views = _Stock(partial(dali_graph.two_views, config, decoder, **whole))
        self._centre_view = _Stock(partial(dali_graph.centre_view, config, decoder, **whole))
        self._decoded = _Stock(partial(dali_graph.decoded, decoder, batch_size=1, **options))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def views(
        self, encoded: Sequence[bytes], parameters: tuple[ViewParameters, ViewParameters]
    ) -> Tensor:
        inputs: dict[str, Any] = {}
        for view, numbers in enumerate(parameters):
            inputs |= dali_graph.Fed.of(numbers, self.config.size).named(view)
        needed = np.maximum(*(p.crop[:, :2] + p.crop[:, 2:] for p in parameters))
        images = [_readable(i, image, *needed[i]) for i, image in enumerate(encoded)]
        return self._run_mended(self._two_views, 2, images, inputs)

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        images = [_readable(i, image) for i, image in enumerate(encoded)]
        return self._run_mended(self._centre_view, 1, images, {})[0]

    def _run_mended(
        self, stock: "_Stock", outputs: int, images: list[bytes], rest: Inputs
    ) -> Tensor:
        """`_run`; where DALI fails, once more with what it cannot decode decoded by Pillow.

        Raises UndecodableError for an image that neither of them can decode.
        """
        try:
            return self._run(stock, outputs, images, rest)
        except RuntimeError:
            odd = [i for i, image in enumerate(images) if not self._decodes(image)]
            if not odd:
                raise
            for i in odd:
                images[i] = _bitmap(_decoded_by_pillow(i, images[i]))
            return self._run(stock, outputs, images, rest)

    def _run(self, stock: "_Stock", outputs: int, images: Sequence[bytes], rest: Inputs) -> Tensor:
        """[outputs, n, 3, size, size]; RuntimeError if DALI fails, whose pipeline then is lost."""
        size = self.config.size
        with torch.cuda.stream(self._stream):
            shape = (outputs, len(images), 3, size, size)
            made = torch.empty(shape, dtype=torch.float32, device=self.device)
            for begin in range(0, len(images), MAX_BATCH):
                part = slice(begin, begin + MAX_BATCH)
                with stock.lent() as pipeline:
                    pipeline.feed_input("encoded", [_array(image) for image in images[part]])
                    for name, rows in rest.items():
                        pipeline.feed_input(name, rows[part])
                    for views, result in zip(made, pipeline.run(), strict=True):
                        feed_ndarray(result.as_tensor(), views[part], self._stream)
                    if self._stream is not None:
                        self._stream.synchronize()
        return made

    def _decodes(self, image: bytes) -> bool:
        try:
            with self._decoded.lent() as pipeline:
                pipeline.feed_input("encoded", [_array(image)])
                pipeline.run()
        except RuntimeError:
            return False
        return True


class _Stock:
    """Built pipelines of one kind that wait for use; more are built as they are needed."""

    def __init__(self, define: Callable[[], Pipeline]) -> None:
        self._define = define
        self._idle: list[Pipeline] = []
        self._lock = threading.Lock()

    @contextmanager
    def lent(self) -> Iterator[Pipeline]:
        """A pipeline for the caller alone. One that fails is dead, and so does not come back."""
        with self._lock:
            pipeline = self._idle.pop() if self._idle else self._built()
        yield pipeline
        with self._lock:
            self._idle.append(pipeline)

    def _built(self) -> Pipeline:
        pipeline = self._define()
        pipeline.build()
        return pipeline


def _gpu(device: torch.device) -> int | None:
    """The ordinal of a CUDA device (of the current one, where it names none); None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _array(image: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(image, dtype=np.uint8)


def _readable(position: int, image: bytes, bottom: int = 1, right: int = 1) -> bytes:
    """The image as DALI can take it; one smaller than `bottom` x `right` pixels is an error.

    Raises UndecodableError.
    """
    size = _common_size(image)
    if size is None:
        decoded = _decoded_by_pillow(position, image)
        image, size = _bitmap(decoded), (decoded.height, decoded.width)
    if size[0] < bottom or size[1] < right:
        reason = f"it has {size[0]} x {size[1]} pixels, fewer than the index says"
        raise UndecodableError(position, reason)
    return image


def _common_size(image: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG that DALI can be trusted with; None for all else."""
    try:
        header = nvimgcodec.CodeStream(image)
        height, width, bits, codec = (
            header.height,
            header.width,
            header.precision,
            header.codec_name,
        )
    except RuntimeError:
        return None
    # Pillow refuses what is too large to be honest: it is to be asked.
    honest = height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
    return (height, width) if codec in ("jpeg", "png") and bits <= 8 and honest else None


def _decoded_by_pillow(position: int, image: bytes) -> Image.Image:
    """Raises UndecodableError."""
    try:
        return tensor.decode(image)
    except OSError as error:
        raise UndecodableError(position, str(error)) from None


def _bitmap(image: Image.Image) -> bytes:
    """A binary PPM (Netpbm's P6: a header and the bytes of the pixels)."""
    return b"P6 %d %d 255\n" % image.size + image.tobytes()
