"""The recipe applied by NVIDIA DALI, on a GPU where there is one, else on the CPU.

A DALI pipeline may be used by one thread at a time and keeps its buffers, so there is a pool of
them: a call takes one, feeds it, waits for the result, copies it out and returns the pipeline. As
many calls run side by side as there are threads that ask (`Loader.batches` has `views.workers` of
them, each with one core of a CPU pipeline), and a call never sees what another has fed. Running
ahead is the calling threads' task, not a queue's inside DALI, so that a batch stays a function of
its step.

JPEG and PNG of up to 8 bits go to DALI as they are. Everything else (GIF, PPM, 16-bit PNG, ...)
is decoded by Pillow and passed on as a raw bitmap in the same batch: a stream may hold any
format that Pillow reads, and such an image has the same views with every backend.

An image that DALI cannot decode ends its pipeline without a name, and a header that it cannot
parse may end the process (2.4.0). So every header is read first, by DALI's own parser and alone;
failures after that are located by decoding the images of the batch one by one. Pillow decides
whether an image is bad: it decodes where DALI fails, and every JPEG or PNG that is not regular
from end to end (jpeg_check.py), of which DALI would invent the rest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from nvidia import nvimgcodec
from nvidia.dali import Pipeline
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image
from torch import Tensor

from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.images import unfit
from kaizen_dist.views import dali_graph, eval_view
from kaizen_dist.views.backend import Sizes, UndecodableError, is_out_of_memory, record_stream
from kaizen_dist.views.jpeg_check import regular_jpeg, regular_png
from kaizen_dist.views.recipe import Parameters

MAX_BATCH = 256
"""Images in one run of a pipeline; it bounds the memory. Larger batches take several runs."""
MAX_PIXELS = 1 << 29
"""Of all images in one run, likewise, except for a single larger image."""

Inputs: TypeAlias = Mapping[str, Any]
"""The inputs of a pipeline by name, each a sequence with an entry for each image."""
Made = TypeVar("Made")


class DaliBackend:
    """See `views.backend.Backend`."""

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        on_gpu = device.type == "cuda"
        decoder, where = ("mixed", "gpu") if on_gpu else ("cpu", "cpu")
        options = {
            "batch_size": MAX_BATCH,
            # One thread each: several calling threads have as many pipelines.
            "num_threads": 1,
            "device_id": _ordinal(device),
            "prefetch_queue_depth": 1,
        }
        graph = dali_graph
        self._two_views = _Pool(partial(graph.two_views, config, decoder, **options))
        self._centre_view = _Pool(partial(graph.centre_view, config, decoder, **options))
        self._decoded = _Pool(partial(graph.decoded, decoder, **options))
        self._of_pixels = _Pool(partial(graph.two_views_of_pixels, config, where, **options))
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def views(self, encoded: Sequence[bytes], sizes: Sizes, parameters: Parameters) -> Tensor:
        numbers = dali_graph.inputs(parameters, self.config.size)
        images, runs = _readable(encoded, sizes.tolist())
        return self._repaired(
            images, lambda images: self._run(self._two_views, 2, _arrays(images) | numbers, runs)
        )

    def decode(self, encoded: Sequence[bytes], sizes: Sizes) -> list[Tensor]:
        images, runs = _readable(encoded, sizes.tolist())
        return self._repaired(images, lambda images: self._pixels(images, sizes.tolist(), runs))

    def views_of(self, pixels: Sequence[Tensor], parameters: Parameters) -> Tensor:
        images = list(pixels) if self._stream is not None else [image.numpy() for image in pixels]
        numbers = dali_graph.inputs(parameters, self.config.size)
        runs = _runs([image.shape[0] * image.shape[1] for image in pixels])
        return self._run(self._of_pixels, 2, {dali_graph.IMAGES: images} | numbers, runs)

    def centre_views(self, encoded: Sequence[bytes]) -> Tensor:
        images, runs = _readable(encoded, [None] * len(encoded), middle_only=True)
        return self._repaired(
            images, lambda images: self._run(self._centre_view, 1, _arrays(images), runs)
        )[0]

    def _repaired(self, images: list[bytes], make: Callable[[list[bytes]], Made]) -> Made:
        """`make(images)`; where DALI fails, again with what it cannot decode decoded by Pillow.

        Raises UndecodableError for the images that neither of them decodes.
        """
        try:
            return make(images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            odd = [position for position, image in enumerate(images) if not self._decodes(image)]
            if not odd:
                raise
        bad = {}
        for position in odd:
            try:
                images[position] = _bitmap(eval_view.decode(images[position]))
            except OSError as error:
                bad[position] = str(error)
        if bad:
            raise UndecodableError(bad)
        return make(images)

    def _run(self, pool: "_Pool", outputs: int, inputs: Inputs, runs: Sequence[slice]) -> Tensor:
        """[outputs, n, 3, size, size]; RuntimeError if DALI fails."""
        size = self.config.size
        with torch.cuda.stream(self._stream):
            shape = (outputs, len(inputs[dali_graph.IMAGES]), 3, size, size)
            made = torch.empty(shape, dtype=torch.float32, device=self.device)
            for run, results in self._outputs(pool, inputs, runs):
                for views, result in zip(made, results, strict=True):
                    feed_ndarray(result.as_tensor(), views[run], self._stream)
        return record_stream(made)

    def _pixels(
        self, images: Sequence[bytes], sizes: list[tuple[int, int]], runs: Sequence[slice]
    ) -> list[Tensor]:
        """Every image [height, width, 3] uint8; RuntimeError if DALI fails."""
        with torch.cuda.stream(self._stream):
            # Memory of this stream, which alone writes it, and reads it for `views_of`; no other
            # stream has still to read or write it.
            made = [torch.empty(*size, 3, dtype=torch.uint8, device=self.device) for size in sizes]
            for run, (results,) in self._outputs(self._decoded, _arrays(images), runs):
                for pixels, result in zip(made[run], results, strict=True):
                    feed_ndarray(result, pixels, self._stream)
        return made

    def _decodes(self, image: bytes) -> bool:
        try:
            list(self._outputs(self._decoded, _arrays([image]), [slice(1)]))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return False
        return True

    def _outputs(
        self, pool: "_Pool", inputs: Inputs, runs: Sequence[slice]
    ) -> Iterator[tuple[slice, Any]]:
        """The outputs of a pipeline for each run, to be copied before the next is taken;
        RuntimeError if DALI fails, and its pipeline is lost."""
        for run in runs:
            with pool.pipeline() as pipeline:
                for name, rows in inputs.items():
                    pipeline.feed_input(name, rows[run])
                yield run, pipeline.run()
                # The pipeline's buffers are used again once the copies are complete.
                if self._stream is not None:
                    self._stream.synchronize()


class _Pool:
    """Built pipelines of one kind that wait for use; more are built as they are needed."""

    def __init__(self, define: Callable[[], Pipeline]) -> None:
        self._define = define
        self._idle: list[Pipeline] = []
        self._lock = threading.Lock()

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """A pipeline for the caller alone. One that fails is dead, and so does not come back."""
        with self._lock:
            if self._idle:
                pipeline = self._idle.pop()
            else:
                pipeline = self._define()
                pipeline.build()
        yield pipeline
        self._idle.append(pipeline)


def _ordinal(device: torch.device) -> int | None:
    """The ordinal of a CUDA device (of the current one, where it names none); None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _arrays(images: Sequence[bytes]) -> dict[str, Any]:
    return {dali_graph.IMAGES: [np.frombuffer(image, dtype=np.uint8) for image in images]}


def _readable(
    encoded: Sequence[bytes], sizes: Sequence[Sequence[int] | None], middle_only: bool = False
) -> tuple[list[bytes], list[slice]]:
    """The images as DALI can take them, and in which runs; with `middle_only` long ones cut to
    `eval_view.middle`.

    Raises UndecodableError for all that Pillow cannot decode either, and all of another size.
    """
    images, pixels, bad = list(encoded), [], {}
    for position, (data, expected) in enumerate(zip(encoded, sizes, strict=True)):
        size = _trusted_size(data)
        try:
            if size is None or (middle_only and max(size) > eval_view.LONGEST * min(size)):
                image = eval_view.decode(data, expected)
                size = image.height, image.width
                images[position] = _bitmap(eval_view.middle(image) if middle_only else image)
            eval_view.check_size(size, expected)
            pixels.append(size[0] * size[1])
        except OSError as error:
            bad[position] = str(error)
    if bad:
        raise UndecodableError(bad)
    return images, _runs(pixels)


def _runs(pixels: Sequence[int]) -> list[slice]:
    """The images of each run, by their numbers of pixels."""
    runs, begin, total = [], 0, 0
    for end, count in enumerate(pixels):
        if end > begin and (end - begin == MAX_BATCH or total + count > MAX_PIXELS):
            runs.append(slice(begin, end))
            begin, total = end, 0
        total += count
    return [*runs, slice(begin, len(pixels))] if pixels else runs


def _trusted_size(image: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG or PNG that DALI decodes reliably; None for all else."""
    try:
        header = nvimgcodec.CodeStream(image)
        size, bits, codec = (header.height, header.width), header.precision, header.codec_name
    except RuntimeError:
        return None
    # What is unfit is refused with the messages of images.py, when Pillow decodes it.
    fit = bits <= 8 and unfit(*size) is None
    whole = (codec == "png" and regular_png(image)) or (codec == "jpeg" and regular_jpeg(image))
    return size if fit and whole else None


def _bitmap(image: Image.Image) -> bytes:
    """A binary PPM (Netpbm's P6: a header and the bytes of the pixels)."""
    return b"P6 %d %d 255\n" % image.size + image.tobytes()
