"""Speed of the storage under a stream, and of the loader on it.

Three turns on the same shards: read from end to end, read image by image at random places (as
training does), and the real loader with its decoding and views. The system is told to drop a
file's cached pages before it is read, so that the disk is measured and not the memory.
"""

import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from kaizen_dist.doctor.report import Finding, gigabytes, graded
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.remote import checked_url, is_url
from kaizen_dist.stream.shards import Split

GROUP = "storage"
_SECONDS = 1.5
"""Limit of a turn."""
_PIECE = 8 << 20
_ENOUGH_BYTES = 16 << 20
_BATCH = 256


def storage(place: str) -> Iterator[Finding]:
    """The storage under a stream.

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
    value = f"{loaded:,.0f} images/s into two views (one rank, 2 threads)"
    # Only the model can say how many are enough.
    yield Finding(GROUP, "loader", "ok", value, facts={"images_per_second": loaded})


def sequential(shards: list[Path]) -> tuple[int, float]:
    """(bytes, bytes a second) read from end to end, of shards in random order."""
    piece = memoryview(bytearray(_PIECE))
    done, begun = 0, time.perf_counter()
    for number in np.random.default_rng().permutation(len(shards)):
        with shards[number].open("rb", buffering=0) as file:
            _drop_cached(file.fileno())
            while time.perf_counter() - begun < _SECONDS and (read := file.readinto(piece)):
                done += read
    return done, done / (time.perf_counter() - begun)


def at_random(split: Split) -> tuple[float, float]:
    """(images a second, bytes a second), each image by its offset, in random order.

    A small split is read repeatedly, then from memory, as it is in training.
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
    """Images a second of the loader, for views as large as the stream's images suggest."""
    from kaizen_dist.bench.loader import measure, own_loader
    from kaizen_dist.config.schema import ViewsConfig

    shorter = int(min(split.index[0]["height"], split.index[0]["width"]))
    config = ViewsConfig(size=224 if shorter >= 224 else max(8, shorter))
    start = own_loader(split, config, min(_BATCH, len(split)))
    return 1 / measure(start, config.prefetch, _SECONDS).seconds


def sequential_finding(read: int, bytes_per_second: float) -> Finding:
    """The speed from end to end, measured on `read` bytes."""
    value = f"{bytes_per_second / 1e6:,.0f} MB/s, over {gigabytes(read)}"
    facts = {"bytes": read, "bytes_per_second": bytes_per_second}
    cure = "copy the stream to a faster disk, or name one with stream.cache_dir"
    # On a small stream it is the latency that shows.
    state = graded(bytes_per_second, warn=20e6 if read >= _ENOUGH_BYTES else 0, fail=0)
    return Finding(GROUP, "end to end", state, value, cure, facts)


def offset_finding(images: float, bytes_per_second: float, loaded: float) -> Finding:
    """The speed by offset, compared with the images a second of the loader.

    It is one reader's; the loader has several, but a stream on busy storage needs the reserve.
    """
    value = f"{bytes_per_second / 1e6:,.0f} MB/s, {images:,.0f} images/s (one reader)"
    facts = {"bytes_per_second": bytes_per_second, "images_per_second": images}
    cure = "storage may be the bottleneck: stream.cache_dir=FOLDER on a local disk"
    return Finding(GROUP, "by offset", graded(images, warn=loaded, fail=0), value, cure, facts)


def _drop_cached(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
