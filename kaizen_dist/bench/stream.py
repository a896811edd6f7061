"""What a very large stream costs a rank before a pixel is touched: to open, to seek, to order.

Measured on a stream made up for it: a manifest and an index as `prepare` writes them, beside
shards that are holes in the file system, since nothing reads them. Opening and seeking are
timed in a process of their own, which has imported what a rank imports and nothing more, so
that time and memory are what a rank would pay; a seek is all of a step but its pixels: which
samples, where they lie, and the parameters of their views. The order of a still larger stream
needs no stream at all.
"""

import multiprocessing
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from kaizen_dist.bench.machine import machine, resident_bytes
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.index import INDEX, write_index
from kaizen_dist.stream.manifest import MANIFEST, Stream
from kaizen_dist.stream.manifest_schema import Counts, StreamManifest, TaskInfo
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.shards import ShardInfo, shard_name
from kaizen_dist.views.loader import Loader

SHARD_SAMPLES = 2000
PAST_TASKS = 9
"""Finished tasks with a replay store, each of 1 % of the task that is being learnt."""
_CLASSES = 1000
_IMAGE_BYTES = 110_000
_SIDES = (375, 500)
"""Height and width of an image; both numbers are about ImageNet's mean."""
_EPOCHS = 1000


@dataclass(frozen=True)
class Row:
    """One thing measured. Times are of the wall clock; the first is a median, but for `open`."""

    name: str
    milliseconds: float
    worst_milliseconds: float
    cpu_milliseconds: float
    """Of an average one."""
    memory_mb: float | None
    """By how much the process had grown by then (10^6 bytes); of an order, what a step allocates
    at most."""
    images_per_second: float
    cpu_ms_per_image: float


@dataclass(frozen=True)
class BenchResult:
    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine": {...}, "settings": {...}}."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal."""
        table = Table(
            title="{samples:,} samples on disk, {ordered:,} in the order alone, "
            "batch {batch} on {world} ranks".format(**self.settings)
        )
        table.add_column("what")
        for name in ("ms", "worst ms", "CPU ms", "MB"):
            table.add_column(name, justify="right")
        for row in self.rows:
            memory = "" if row.memory_mb is None else f"{row.memory_mb:.1f}"
            times = (row.milliseconds, row.worst_milliseconds, row.cpu_milliseconds)
            table.add_row(row.name, *(f"{value:.2f}" for value in times), memory)
        return table


def bench_stream(
    *,
    samples: int = 1_280_000,
    ordered: int = 100_000_000,
    batch: int = 4096,
    world: int = 1,
    repeats: int = 50,
    folder: Path | None = None,
) -> BenchResult:
    """Measures `open`, `seek`, `order` and `order with replay`.

    Args:
        samples: of the stream that is made up, in one task.
        ordered: samples of the task whose order is asked alone.
        batch: images of the task in a step, over all ranks; as many are replayed in the last row.
        world: ranks; it is rank 0 that opens and seeks. The order is asked for all ranks at once.
        repeats: steps, each at random.
        folder: where the stream is made for the time being; None = where temporary files go.

    Raises:
        UsageError: if a count is below 1, or a task has less than a step.
        WriteError: if the stream cannot be made.
    """
    if min(samples, ordered, batch, world, repeats) < 1:
        raise UsageError("samples, ordered, batch, world and repeats must be at least 1")
    lanes_of_rank(batch, 0, world)
    facts = machine()  # first, or its load would be this benchmark's own
    with tempfile.TemporaryDirectory(prefix="kaizen-bench-", dir=folder) as root:
        make_stream(Path(root), samples)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            rows = alone.submit(_open_and_seek, root, batch, world, repeats).result()
    kept = ordered // 100
    rows += [
        _ordered("order", Order(0, 0, ordered, batch, batch), repeats),
        _ordered(
            "order with replay",
            Order(0, PAST_TASKS, ordered, batch, batch, (kept,) * PAST_TASKS, batch),
            repeats,
        ),
    ]
    settings = {
        "samples": samples,
        "ordered": ordered,
        "batch": batch,
        "world": world,
        "repeats": repeats,
        "past_tasks": PAST_TASKS,
    }
    return BenchResult(rows, facts, settings)


# ---- the stream that is made up ---------------------------------------------------------


def make_stream(root: Path, samples: int) -> None:
    """A stream of one task in `root`: everything about it is whole but the images themselves.

    Raises:
        WriteError: if it cannot be written.
    """
    folder = root / "task-00"
    folder.mkdir()
    index = _index(samples)
    shards = []
    for number, count in enumerate(np.bincount(index["shard"]).tolist()):
        path = folder / shard_name("train", number)
        size = count * _member_bytes()
        with path.open("wb") as file:
            file.truncate(size)
        shards.append(ShardInfo(name=path.name, samples=count, bytes=size, sha256="0" * 64))
    task = TaskInfo(
        folder=folder.name,
        name="all",
        classes=list(range(_CLASSES)),
        train=samples,
        val=0,
        labelled=samples,
        shards=shards,
        index_sha256={
            "train": write_index(folder, "train", index),
            "val": write_index(folder, "val", index[:0]),
        },
    )
    manifest = StreamManifest(
        source="made up",
        classes=[f"class {number}" for number in range(_CLASSES)],
        counts=Counts(train=samples, val=0, labelled=samples, bad=0, ignored=0),
        tasks=[task],
        bad=[],
    )
    (root / MANIFEST).write_text(manifest.model_dump_json())


def _index(samples: int) -> NDArray[Any]:
    row = np.arange(samples)
    index = np.empty(samples, INDEX)
    index["shard"] = row // SHARD_SAMPLES
    index["offset"] = row % SHARD_SAMPLES * _member_bytes()
    index["length"] = _IMAGE_BYTES
    index["label"] = row % _CLASSES
    index["id"] = row[::-1]
    index["height"], index["width"] = _SIDES
    return index


def _member_bytes() -> int:
    return _IMAGE_BYTES + 1024


# ---- the measurements -------------------------------------------------------------------


def _open_and_seek(root: str, batch: int, world: int, repeats: int) -> list[Row]:
    """The rows `open` and `seek`; in a fresh process, of rank 0."""
    before = resident_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    split = Stream.open(root).split(0, "train")
    order = Order(0, 0, len(split), batch, batch)
    loader = Loader(order, {0: split}, ViewsConfig(size=224), lanes_of_rank(order.lanes, 0, world))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    opened = _row("open", [wall], cpu, len(split), _grown(before))
    steps = _some_steps(order, repeats)
    seeks, cpu = _timed([partial(loader.samples, *at) for at in steps])
    return [opened, _row("seek", seeks, cpu, batch // world, _grown(before))]


def _ordered(name: str, order: Order, repeats: int) -> Row:
    picks = [partial(order.picks, *at) for at in _some_steps(order, repeats)]
    seconds, cpu = _timed(picks)
    tracemalloc.start()
    picks[0]()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return _row(name, seconds, cpu, order.batch_size + order.replay_batch_size, allocated / 1e6)


def _some_steps(order: Order, count: int) -> list[tuple[int, int]]:
    """(epoch, step)s from anywhere."""
    draws = np.random.default_rng(0)
    epochs = draws.integers(_EPOCHS, size=count)
    steps = draws.integers(order.steps_per_epoch, size=count)
    return list(zip(epochs.tolist(), steps.tolist(), strict=True))


def _timed(calls: Sequence[Callable[[], object]]) -> tuple[list[float], float]:
    """Seconds of each call, and CPU seconds of an average one."""
    cpu, seconds = time.process_time(), []
    for call in calls:
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds, (time.process_time() - cpu) / len(calls)


def _row(name: str, seconds: list[float], cpu: float, images: int, memory: float | None) -> Row:
    median = statistics.median(seconds)
    return Row(
        name=name,
        milliseconds=1000 * median,
        worst_milliseconds=1000 * max(seconds),
        cpu_milliseconds=1000 * cpu,
        memory_mb=memory,
        images_per_second=images / median,
        cpu_ms_per_image=1000 * cpu / images,
    )


def _grown(before: int | None) -> float | None:
    """By how many MB this process has been larger than it was, at its largest."""
    peak = resident_bytes(peak=True)
    return None if before is None or peak is None else max(0, peak - before) / 1e6
