"""Time and memory that a very large stream costs a rank before any pixel: open, seek, order.

Measured on a synthetic stream: a manifest and an index as `prepare` writes them, beside shards
that are holes in the file system, since nothing reads them. Opening and seeking are timed in a
process of their own, with the imports of a rank and nothing more, so that time and
memory are those of a rank; a seek is all of a step but its pixels: which samples, where
they lie, and the parameters of their views. The order of a still larger stream needs no stream.

Columns of a row, by the wall clock: `milliseconds` (median; of `open` the only one),
`worst_milliseconds`, `cpu_milliseconds` (mean), `memory_mb` (10^6 bytes by which the process had
grown; of an order, the peak allocation of a step; null: unknown), `images_per_second`,
`cpu_ms_per_image`.
"""

import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.bench.machine import machine, resident_bytes
from kaizen_dist.bench.result import BenchResult, Row, Sheet
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.index import INDEX, write_index
from kaizen_dist.stream.manifest import MANIFEST, Stream
from kaizen_dist.stream.manifest_entries import Addition, Settings, TaskInfo
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.shards import ShardInfo, shard_name
from kaizen_dist.views.loader import Loader

SHARD_SAMPLES = 2000
PAST_TASKS = 9
"""Finished tasks with a replay store, each of 1 % of the current task."""
_CLASSES = 1000
_IMAGE_BYTES = 110_000
_MEMBER_BYTES = _IMAGE_BYTES + 1024
_SIDES = (375, 500)
"""Height and width of an image; both numbers are about ImageNet's mean."""
_EPOCHS = 1000


def bench_stream(
    *,
    samples: int = 1_280_000,
    ordered: int = 100_000_000,
    batch: int = 4096,
    world: int = 1,
    repeats: int = 50,
    folder: Path | None = None,
) -> BenchResult:
    """Measure `open`, `seek`, `order` and `order with replay`.

    Args:
        samples: of the synthetic stream, in one task.
        ordered: samples of the task whose order is measured alone.
        batch: images of the task in a step, over all ranks; as many are replayed in the last row.
        world: ranks; rank 0 opens and seeks. The order is computed for all ranks at once.
        repeats: steps, each at random.
        folder: where the stream is made temporarily; None: the folder of temporary files.

    Raises:
        UsageError: if a count is below 1, or a task has less than a step.
        WriteError: if the stream cannot be made.
    """
    settings = {
        "samples": samples,
        "ordered": ordered,
        "batch": batch,
        "world": world,
        "repeats": repeats,
    }
    if min(settings.values()) < 1:
        raise UsageError("samples, ordered, batch, world and repeats must be at least 1")
    lanes_of_rank(batch, 0, world)
    facts = machine()  # first, or its load would be this benchmark's own
    with tempfile.TemporaryDirectory(prefix="kaizen-bench-", dir=folder) as root:
        make_stream(Path(root), samples)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as alone:
            rows = alone.submit(_open_and_seek, root, batch, world, repeats).result()
    kept = (ordered // 100,) * PAST_TASKS
    replaying = Order(0, PAST_TASKS, ordered, batch, batch, kept, batch)
    rows.append(_order_row("order", Order(0, 0, ordered, batch, batch), repeats))
    rows.append(_order_row("order with replay", replaying, repeats))
    settings["past_tasks"] = PAST_TASKS
    title = f"{samples:,} samples on disk, {ordered:,} in the order alone, "
    title += f"batch {batch} on {world} ranks"
    head = ("step", "ms", "worst ms", "CPU ms", "MB")
    return BenchResult(rows, facts, settings, [Sheet(title, head, [_cells(row) for row in rows])])


# ---- the synthetic stream ----------------------------------------------------------------


def make_stream(root: Path, samples: int) -> None:
    """A stream of one task in `root`, complete but for the images themselves.

    Raises:
        WriteError: if it cannot be written.
    """
    folder = root / "task-00"
    folder.mkdir()
    index = _index(samples)
    shards = []
    for number, count in enumerate(np.bincount(index["shard"]).tolist()):
        path = folder / shard_name("train", number)
        with path.open("wb") as file:
            file.truncate(count * _MEMBER_BYTES)
        size = count * _MEMBER_BYTES
        shards.append(ShardInfo(name=path.name, samples=count, bytes=size, sha256="0" * 64))
    task = TaskInfo(
        folder=folder.name,
        name="all",
        classes=list(range(_CLASSES)),
        new_classes=[f"class {number}" for number in range(_CLASSES)],
        train=samples,
        val=0,
        labelled=samples,
        shards=shards,
        index_sha256={
            "train": write_index(folder, "train", index),
            "val": write_index(folder, "val", index[:0]),
        },
    )
    made = Addition(settings=Settings(source="made up"), tasks=1, ignored=0)
    (root / MANIFEST).write_bytes(StreamManifest.of([made], [task]).written())


def _index(samples: int) -> NDArray[Any]:
    row = np.arange(samples)
    index = np.empty(samples, INDEX)
    index["shard"] = row // SHARD_SAMPLES
    index["offset"] = row % SHARD_SAMPLES * _MEMBER_BYTES
    index["length"] = _IMAGE_BYTES
    index["label"] = row % _CLASSES
    index["id"] = row[::-1]
    index["height"], index["width"] = _SIDES
    return index


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


def _order_row(name: str, order: Order, repeats: int) -> Row:
    picks = [partial(order.picks, *at) for at in _some_steps(order, repeats)]
    seconds, cpu = _timed(picks)
    tracemalloc.start()
    picks[0]()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return _row(name, seconds, cpu, order.batch_size + order.replay_batch_size, allocated / 1e6)


def _some_steps(order: Order, count: int) -> list[tuple[int, int]]:
    """Random (epoch, step)s."""
    draws = np.random.default_rng(0)
    epochs = draws.integers(_EPOCHS, size=count)
    steps = draws.integers(order.steps_per_epoch, size=count)
    return list(zip(epochs.tolist(), steps.tolist(), strict=True))


def _timed(calls: Sequence[Callable[[], object]]) -> tuple[list[float], float]:
    """Seconds of each call, and mean CPU seconds."""
    cpu, seconds = time.process_time(), []
    for call in calls:
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds, (time.process_time() - cpu) / len(calls)


def _row(name: str, seconds: list[float], cpu: float, images: int, memory: float | None) -> Row:
    return {
        "name": name,
        "milliseconds": 1000 * median(seconds),
        "worst_milliseconds": 1000 * max(seconds),
        "cpu_milliseconds": 1000 * cpu,
        "memory_mb": memory,
        "images_per_second": images / median(seconds),
        "cpu_ms_per_image": 1000 * cpu / images,
    }


def _cells(row: Row) -> list[str]:
    times = (row[f"{name}milliseconds"] for name in ("", "worst_", "cpu_"))
    memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.1f}"
    return [row["name"], *(f"{value:.2f}" for value in times), memory]


def _grown(before: int | None) -> float | None:
    """MB by which this process's peak exceeds its size before."""
    peak = resident_bytes(peak=True)
    return None if before is None or peak is None else max(0, peak - before) / 1e6
