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
what fails later is found by decoding the images of the batch one by one. Whether an image is
bad, Pillow says: it is asked wherever DALI fails, and for every JPEG or PNG that is not regular
from end to end (markers.py), of which DALI would make up the rest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia import nvimgcodec
from nvidia.dali import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image
from torch import Tensor

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.images import unfit
from kaizen_dist.views import dali_graph, eval_view
from kaizen_dist.views.backend import UndecodableError, used_here, wrong_size
from kaizen_dist.views.jpeg_check import regular_jpeg, regular_png
from kaizen_dist.views.out_of_memory import is_shortage
from kaizen_dist.views.recipe import ViewParameters

MAX_BATCH = 256
"""Images in one run of a pipeline; it bounds the memory. Larger batches take several runs."""
MAX_PIXELS = 1 << 29
"""Of all images in one run, likewise, but for a single image."""

Inputs = Mapping[str, Any]
"""What a pipeline is fed beside the images, by name: rows of an array."""

Made = TypeVar("Made")


class DaliBackend:
    """See `views.backend.Backend`."""

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        on_gpu = device.type == "cuda"
        decoder = "mixed" if on_gpu else "cpu"
        options = {
            "batch_size": MAX_BATCH,
            # One thread each: whoever asks from several threads has as many pipelines.
            "num_threads": 1,
            "device_id": _gpu(device),
            "prefetch_queue_depth": 1,
        }
        self._two_views = _Stock(partial(dali_graph.two_views, config, decoder, **options))
        self._centre_view = _Stock(partial(dali_graph.centre_view, config, decoder, **options))
        self._decoded = _Stock(partial(dali_graph.decoded, decoder, **options))
        where = "gpu" if on_gpu else "cpu"
        self._of_pixels = _Stock(partial(dali_graph.two_views_of_pixels, config, where, **options))
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def views(
        self,
        encoded: Sequence[bytes],
        sizes: NDArray[np.int64],
        parameters: tuple[ViewParameters, ViewParameters],
    ) -> Tensor:
        numbers = self._numbers(parameters)
        images, parts = _readable(encoded, sizes)
        return self._mended(
            images, lambda images: self._run(self._two_views, 2, _arrays(images), numbers, parts)
        )

    def decode(self, encoded: Sequence[bytes], sizes: NDArray[np.int64]) -> list[Tensor]:
        images, parts = _readable(encoded, sizes)
        return self._mended(images, lambda images: self._pixels(images, sizes.tolist(), parts))

    def views_of(
        self, pixels: Sequence[Tensor], parameters: tuple[ViewParameters, ViewParameters]
    ) -> Tensor:
        images = list(pixels) if self._stream is not None else [image.numpy() for image in pixels]
        parts = _parts([image.shape[0] * image.shape[1] for image in pixels])
        return self._run(self._of_pixels, 2, images, self._numbers(parameters), parts)

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        images, parts = _readable(encoded, middle_only=True)
        return self._mended(
            images, lambda images: self._run(self._centre_view, 1, _arrays(images), {}, parts)
        )[0]

    def _numbers(self, parameters: tuple[ViewParameters, ViewParameters]) -> dict[str, Any]:
        first, second = (
            dali_graph.Fed.of(numbers, self.config.size).named(view)
            for view, numbers in enumerate(parameters)
        )
        return first | second

    def _mended(self, images: list[bytes], make: Callable[[list[bytes]], Made]) -> Made:
        """What `make` makes; where DALI fails, of what it cannot decode decoded by Pillow.

        Raises UndecodableError for the images that neither of them can decode.
        """
        try:
            return make(images)
        except RuntimeError as error:
            if is_shortage(error):
                raise
            odd = [place for place, image in enumerate(images) if not self._decodes(image)]
            if not odd:
                raise
            decoded, bad = _decoded_by_pillow({place: images[place] for place in odd})
            if bad:
                raise UndecodableError(bad) from None
            for place, image in decoded.items():
                images[place] = _bitmap(image)
            return make(images)

    def _run(
        self,
        stock: "_Stock",
        outputs: int,
        images: Sequence[Any],
        numbers: Inputs,
        parts: Sequence[slice],
    ) -> Tensor:
        """[outputs, n, 3, size, size]; RuntimeError if DALI fails, whose pipeline then is lost."""
        size = self.config.size
        with torch.cuda.stream(self._stream):
            shape = (outputs, len(images), 3, size, size)
            made = torch.empty(shape, dtype=torch.float32, device=self.device)
            for part in parts:
                with stock.lent() as pipeline:
                    pipeline.feed_input(dali_graph.IMAGES, images[part])
                    for name, rows in numbers.items():
                        pipeline.feed_input(name, rows[part])
                    for views, result in zip(made, pipeline.run(), strict=True):
                        feed_ndarray(result.as_tensor(), views[part], self._stream)
                    self._wait()
        return used_here(made)

    def _pixels(
        self, images: Sequence[bytes], sizes: list[tuple[int, int]], parts: Sequence[slice]
    ) -> list[Tensor]:
        """Every image [height, width, 3] uint8; RuntimeError if DALI fails."""
        with torch.cuda.stream(self._stream):
            # Of this stream's memory, which no other has still to read or write: it alone fills
            # these, and reads them for `views_of`.
            made = [torch.empty(*size, 3, dtype=torch.uint8, device=self.device) for size in sizes]
            for part in parts:
                with self._decoded.lent() as pipeline:
                    pipeline.feed_input(dali_graph.IMAGES, _arrays(images[part]))
                    (results,) = pipeline.run()
                    for pixels, result in zip(made[part], results, strict=True):
                        feed_ndarray(result, pixels, self._stream)
                    self._wait()
        return made

    def _wait(self) -> None:
        """Until what was copied out of a pipeline is there: its buffers are to be used again."""
        if self._stream is not None:
            self._stream.synchronize()

    def _decodes(self, image: bytes) -> bool:
        try:
            with self._decoded.lent() as pipeline:
                pipeline.feed_input(dali_graph.IMAGES, _arrays([image]))
                pipeline.run()
        except RuntimeError as error:
            if is_shortage(error):
                raise
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


def _arrays(images: Sequence[bytes]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(image, dtype=np.uint8) for image in images]


def _readable(
    encoded: Sequence[bytes],
    sizes: NDArray[np.int64] | None = None,
    middle_only: bool = False,
) -> tuple[list[bytes], list[slice]]:
    """The images as DALI can take them, and in which runs; with `middle_only` long ones cut to
    `eval_view.middle`.

    Raises UndecodableError for all that Pillow cannot decode either, and all of another size.
    """
    found = [_common_size(image) for image in encoded]
    foreign = {
        place: encoded[place]
        for place, size in enumerate(found)
        if size is None or (middle_only and max(size) > eval_view.LONGEST * min(size))
    }
    decoded, bad = _decoded_by_pillow(foreign)
    images = list(encoded)
    for place, image in decoded.items():
        found[place] = image.height, image.width
        images[place] = _bitmap(eval_view.middle(image) if middle_only else image)
    for place, said in enumerate([] if sizes is None else sizes.tolist()):
        size = found[place]
        if size is not None and size != (expected := tuple(said)):
            bad[place] = wrong_size(expected, size)
    if bad:
        raise UndecodableError(bad)
    return images, _parts([size[0] * size[1] for size in found if size is not None])


def _parts(pixels: Sequence[int]) -> list[slice]:
    """Which images are in each run, by their numbers of pixels."""
    parts, begin, total = [], 0, 0
    for place, count in enumerate(pixels):
        if place > begin and (place - begin == MAX_BATCH or total + count > MAX_PIXELS):
            parts.append(slice(begin, place))
            begin, total = place, 0
        total += count
    return [*parts, slice(begin, len(pixels))] if pixels else parts


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
    # What is unfit is refused in the words of images.py, where Pillow is asked.
    honest = bits <= 8 and unfit(height, width) is None
    whole = (codec == "png" and regular_png(image)) or (codec == "jpeg" and regular_jpeg(image))
    return (height, width) if honest and whole else None


def _decoded_by_pillow(
    encoded: Mapping[int, bytes],
) -> tuple[dict[int, Image.Image], dict[int, str]]:
    """Images by their places, and why there are none in the others."""
    images, bad = {}, {}
    for place, image in encoded.items():
        try:
            images[place] = eval_view.decode(image)
        except OSError as error:
            bad[place] = str(error)
    return images, bad


def _bitmap(image: Image.Image) -> bytes:
    """A binary PPM (Netpbm's P6: a header and the bytes of the pixels)."""
    return b"P6 %d %d 255\n" % image.size + image.tobytes()
