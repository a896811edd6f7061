"""How fast a stream comes off its storage, and what the loader makes of it.

Three turns on the same shards: read from end to end, read image by image at random places (as
training does), and the real loader with its decoding and views. The system is told to drop what
it holds of a file before it is read, so that the disk is measured and not the memory.
"""

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from kaizen_dist.doctor.finding import Finding, gigabytes, graded
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.remote import checked_url, is_url
from kaizen_dist.stream.shards import Split

GROUP = "storage"
_SECONDS = 1.5
"""Of a turn, at most."""
_PIECE = 8 << 20
_ENOUGH_BYTES = 16 << 20
_BATCH = 256


def storage(place: str) -> Iterator[Finding]:
    """What is to be said of the storage under a stream.

    Raises:
        UsageError: for a URL that cannot be read.
        DataError: if the stream is missing or damaged.
    """
    if is_url(place):
        cure = "give the folder of a stream; `bench loader` measures the views alone"
        yield Finding(GROUP, "stream", "warn", f"{checked_url(place)} is fetched, not read", cure)
        return
    stream = Stream.open(place)
    split = stream.split(0, "train")
    value = f"{stream.manifest.counts.train:,} training images, {len(stream)} tasks"
    yield Finding(GROUP, "stream", "ok", value, facts={"sha256": stream.fingerprint})
    yield sequential_finding(*sequential(split.shards))
    images, by_offset = at_random(split)
    loaded = through_loader(split)
    yield offset_finding(images, by_offset, loaded)
    yield loader_finding(loaded)


def sequential(shards: list[Path]) -> tuple[int, float]:
    """(bytes, bytes a second) read from end to end, of shards at random."""
    order = np.random.default_rng().permutation(len(shards))
    piece = memoryview(bytearray(_PIECE))
    done, begun = 0, time.perf_counter()
    for number in order:
        with shards[number].open("rb", buffering=0) as file:
            _drop_cached(file.fileno())
            while (read := file.readinto(piece)) and time.perf_counter() - begun < _SECONDS:
                done += read
        if time.perf_counter() - begun >= _SECONDS:
            break
    return done, done / (time.perf_counter() - begun)


def at_random(split: Split) -> tuple[float, float]:
    """(images a second, bytes a second), each image by its offset, in random order.

    A split that is soon through is read again, then from memory, as it is in training.
    """
    dropped: set[int] = set()
    draws = np.random.default_rng()
    images, done, begun = 0, 0, time.perf_counter()
    for row in (int(row) for _ in count() for row in draws.permutation(len(split))):
        number = split.shard_of(row)
        if number not in dropped:
            dropped.add(number)
            with split.shards[number].open("rb", buffering=0) as file:
                _drop_cached(file.fileno())
        done += len(split.read(row))
        images += 1
        if time.perf_counter() - begun > _SECONDS:
            break
    seconds = time.perf_counter() - begun
    return images / seconds, done / seconds


def through_loader(split: Split) -> float:
    """Images a second of the loader, for views as large as the stream's images would have."""
    from kaizen_dist.config.schema import ViewsConfig
    from kaizen_dist.stream.order import Order
    from kaizen_dist.views.loader import Loader

    shorter = int(min(split.index[0]["height"], split.index[0]["width"]))
    config = ViewsConfig(size=224 if shorter >= 224 else max(8, shorter))
    order = Order(0, 0, len(split), min(_BATCH, len(split)), 1)
    loader = Loader(order, {0: split}, config)
    batches = loader.batches((e, s) for e in count() for s in range(order.steps_per_epoch))
    for _ in range(config.prefetch):
        next(batches)
    images, begun = 0, time.perf_counter()
    while not images or time.perf_counter() - begun < _SECONDS:
        images += len(next(batches).ids)
    seconds = time.perf_counter() - begun
    batches.close()  # type: ignore[attr-defined]
    return images / seconds


def sequential_finding(read: int, bytes_per_second: float) -> Finding:
    """What is to be said of a speed from end to end, measured on so many bytes."""
    value = f"{bytes_per_second / 1e6:,.0f} MB/s, over {gigabytes(read)}"
    facts = {"bytes": read, "bytes_per_second": bytes_per_second}
    cure = "copy the stream to a faster disk, or name one with stream.cache_dir"
    # Of a small stream it is the latency that is seen.
    state = graded(bytes_per_second, warn=20e6 if read >= _ENOUGH_BYTES else 0, fail=0)
    return Finding(GROUP, "end to end", state, value, cure, facts)


def offset_finding(images: float, bytes_per_second: float, loaded: float) -> Finding:
    """What is to be said of a speed by offset, beside images a second that the loader makes.

    It is one reader's; the loader has several, but a stream on busy storage needs the reserve.
    """
    value = f"{bytes_per_second / 1e6:,.0f} MB/s, {images:,.0f} images/s (one reader)"
    facts = {"bytes_per_second": bytes_per_second, "images_per_second": images}
    cure = "storage may hold the loader up: stream.cache_dir=FOLDER on a local disk"
    return Finding(GROUP, "by offset", graded(images, warn=loaded, fail=0), value, cure, facts)


def loader_finding(images: float) -> Finding:
    """How many images a second the loader makes of it; what is enough only the model can say."""
    value = f"{images:,.0f} images/s into two views (one rank, 2 threads)"
    facts = {"images_per_second": images}
    return Finding(GROUP, "loader", "ok", value, facts=facts)


def _drop_cached(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
