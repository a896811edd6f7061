"""Images per second of the loaders, and CPU time per image.

Reads a stream; measures each of our backends and the usual way (`baseline_loader`): the same
shards, augmentations, batch and number of workers. Where views are blurred, a further row has the
usual way with Pillow's approximate blur in place of torchvision's exact and slow one. All bring
whole batches to the same device: on a GPU ours may decode there, and the usual way copies from
pinned memory. Contenders take turns; a turn starts a loader, fills its queues, and then counts.

CPU time counts all threads of this process and, for the usual way, its worker processes by their
own clocks (each batch carries its worker's); start-up is not counted.

Columns of a row: those of `result.speed` and `result.compared` (with the usual way).
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import torch

from kaizen_dist.bench import baseline_loader
from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.result import (
    SPEED_HEAD,
    BenchResult,
    Row,
    Sheet,
    Spent,
    compared,
    in_turns,
    speed,
    speed_cells,
)
from kaizen_dist.common.console import say
from kaizen_dist.common.device_clock import moment, reach
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.schema import ViewsConfig
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.backend import CPU
from kaizen_dist.views.choose import resolve
from kaizen_dist.views.loader import Loader

AHEAD = 2
"""Batches a worker keeps ready; torch's DataLoader has the same."""
USUAL = "usual"

Made: TypeAlias = Generator[tuple[int, baseline_loader.WorkerTime | None], None, None]
"""A batch's images, and the clock of the worker process that made it, if one did."""


def device_named(name: str | None) -> torch.device:
    """A device by its name; without one the first GPU, or the CPU where there is none.

    Raises:
        UsageError: if there is no such device.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there = [*gpus, "cpu"]
    if name is None or (name == "cuda" and gpus):
        name = there[0]
    if name not in there:
        raise UsageError(f"--device {name}: there is none; this machine has {', '.join(there)}")
    return torch.device(name)


def bench_loader(
    stream_path: str | Path,
    *,
    size: int = 32,
    batch: int = 256,
    workers: int = 2,
    repeats: int = 5,
    seconds: float = 5.0,
    device: torch.device = CPU,
) -> BenchResult:
    """Measure `dali` (where installed), `torch`, `usual` and, above 64 px,
    `usual, Pillow's blur`.

    Args:
        stream_path: a stream; its first task's training images are read.
        size: side of a view in pixels; above 64 with the blur that is usual there.
        batch: images per batch.
        workers: our threads; processes of the usual way.
        repeats: turns of each.
        seconds: minimum length of a turn; it ends with the batch then in progress.
        device: where the views are to lie, ours and those of the usual way.

    Raises:
        UsageError: if a count is below 1, the task has fewer images than a batch, or its shards
            are linked tars.
        DataError: if the stream is missing or damaged.
    """
    if min(batch, workers, repeats) < 1:
        raise UsageError("batch, workers and repeats must be at least 1")
    facts = machine()  # first, or its load would be this benchmark's own
    if device.type == "cuda":
        torch.cuda.set_device(device)
    stream = Stream.open(stream_path)
    if stream.manifest.additions[0].settings.link:
        raise UsageError(
            f"{stream_path} links to tars, which the usual way would read whole, whatever its "
            "first task has of them: prepare it without --link"
        )
    split = stream.split(0, "train")
    contenders = _contenders(split, size, batch, workers, device)
    turns: dict[str, list[Spent]] = {name: [] for name in contenders}
    with _single_threaded():
        for turn, name in in_turns(contenders, repeats):
            turns[name].append(measure(contenders[name], AHEAD * workers, seconds))
            rate = 1 / turns[name][-1].seconds
            say(f"turn {turn + 1} of {repeats}: {name} {rate:,.0f} images/s")
    settings = {
        "size": size,
        "batch": batch,
        "workers": workers,
        "repeats": repeats,
        "seconds": seconds,
        "device": str(device),
        "images": len(split),
    }
    title = f"two views of {size} px on {device}, {workers} workers"
    rows = rows_of(turns)
    return BenchResult(rows, facts, settings, [_sheet(title, rows)])


def rows_of(turns: dict[str, list[Spent]]) -> list[Row]:
    """A row for every contender, from the time per image of its turns."""
    speeds = {name: speed(of_name) for name, of_name in turns.items()}
    return [{"name": n} | row | compared(row, speeds[USUAL]) for n, row in speeds.items()]


def _sheet(title: str, rows: list[Row]) -> Sheet:
    lines = [[row["name"], *speed_cells(row, (0, 3))] for row in rows]
    return Sheet(title, ("loader", *SPEED_HEAD), lines)


def _contenders(
    split: Split, size: int, batch: int, workers: int, device: torch.device
) -> dict[str, Callable[[], Made]]:
    """The function that starts each of them, by name."""
    config = ViewsConfig(size=size, workers=workers, prefetch=AHEAD * workers)
    if size > 64:
        config = config.model_copy(update={"blur": (1.0, 0.1)})
    contenders: dict[str, Callable[[], Made]] = {}
    for name in ("dali", "torch") if resolve("auto") == "dali" else ("torch",):
        own = config.model_copy(update={"backend": name})
        contenders[name] = own_loader(split, own, batch, device)
    # The index has every shard of the split; ours opens no other either.
    start = partial(
        baseline_loader.batches, split.shards, config, batch, workers, AHEAD, device=device
    )
    contenders[USUAL] = start
    if any(config.blur):
        contenders[f"{USUAL}, Pillow's blur"] = partial(start, pillow_blur=True)
    return contenders


def own_loader(
    split: Split, config: ViewsConfig, batch: int, device: torch.device = CPU
) -> Callable[[], Made]:
    """A function that starts our loader. UsageError if the split is smaller than a batch."""
    order = Order(seed=0, task=0, size=len(split), batch_size=batch, lanes=1)
    loader = Loader(order, {0: split}, config, device=device)

    def batches() -> Made:
        for made in loader.batches((e, s) for e in count() for s in range(order.steps_per_epoch)):
            made.labels.to(device, non_blocking=True)
            reach(moment(device))
            yield len(made.ids), None

    return batches


def measure(start: Callable[[], Made], warm_up: int, seconds: float) -> Spent:
    """The time per image of one turn, after `warm_up` batches. The workers' clocks are read at
    their last batches before and in it."""
    before: dict[int, float] = {}
    after: dict[int, float] = {}
    with closing(start()) as batches:
        for _ in range(warm_up):
            _, worker = next(batches)
            before.update([worker] if worker else [])
        images = 0
        wall, cpu = time.perf_counter(), time.process_time()
        # Until every worker has made a batch, some of their time would go uncounted.
        while time.perf_counter() - wall < seconds or not images or before.keys() - after.keys():
            made, worker = next(batches)
            images += made
            after.update([worker] if worker else [])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu += sum(clock - before[process] for process, clock in after.items())
    return Spent(wall / images, cpu / images)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """torch's own threads off, as in a DataLoader's workers: `workers` is all there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
