"""How many images a second the loaders make, and what one costs in CPU time.

In comes a stream; out come a row for each of our backends and one for the way it is usually
done (`baseline_loader.py`): the same shards, augmentations, batch and number of workers. Where
views are blurred there is a row more, for the usual way with Pillow's approximate blur in place of
torchvision's exact and slow one. All of them bring whole batches to the same device: on a GPU ours
may decode there, and the usual way copies from pinned memory. The contenders take turns in one
run, every other time in the opposite order, so that whatever else the machine does meets all of
them; each row is the median of its turns, with the least and the largest. A turn starts a loader,
lets it fill its queues, and counts from there.

CPU time is all threads of this process, and for the usual way its worker processes as well,
by their own clocks (each batch says how much its worker had used), start-up not counted.
"""

import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from kaizen_dist.bench import baseline_loader
from kaizen_dist.bench.machine import machine
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

Made = Generator[tuple[int, baseline_loader.WorkerTime | None], None, None]
"""A batch's images, and the clock of the worker process that made it, if one did."""


@dataclass(frozen=True)
class Turn:
    """One turn of a contender."""

    images_per_second: float
    cpu_ms_per_image: float


@dataclass(frozen=True)
class Row:
    """A contender: medians over its turns, and how far these lie apart."""

    name: str
    images_per_second: float
    cpu_ms_per_image: float
    images_per_second_spread: tuple[float, float]
    """Least and largest of a turn; so is the next."""
    cpu_ms_per_image_spread: tuple[float, float]
    times_images_per_second: float
    """How many times more images a second than the usual way."""
    times_per_cpu_second: float
    """How many times more images per CPU second than the usual way."""


@dataclass(frozen=True)
class BenchResult:
    rows: list[Row]
    machine: dict[str, Any]
    """Processor, cores, load and versions."""
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine": {...}, "settings": {...}}."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal; ± is half of what lies between the least and the largest turn."""
        title = "two views of {size} px on {device}, {workers} workers"
        table = Table(title=title.format(**self.settings))
        table.add_column("loader")
        for name in ("images/s", "CPU ms/image", "x images/s", "x per CPU s"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.images_per_second:,.0f} {_around(row.images_per_second_spread)}",
                f"{row.cpu_ms_per_image:.3f} {_around(row.cpu_ms_per_image_spread)}",
                f"{row.times_images_per_second:.2f}",
                f"{row.times_per_cpu_second:.2f}",
            )
        return table


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
    progress: bool = True,
) -> BenchResult:
    """Measures `dali` (where it is installed), `torch`, `usual` and, above 64 px,
    `usual, Pillow's blur`.

    Args:
        stream_path: a stream; its first task's training images are read.
        size: of a view in pixels; above 64 with the blur that is usual there.
        batch: images a batch.
        workers: threads of ours, processes of the usual way.
        repeats: turns of each.
        seconds: of a turn, at least; it ends with the batch that is then under way.
        device: where the views are to lie, ours and those of the usual way.
        progress: whether each turn is told of on standard error.

    Raises:
        UsageError: if a count is below 1, or the task has less than a batch.
        DataError: if the stream is missing or damaged.
    """
    if min(batch, workers, repeats) < 1:
        raise UsageError("batch, workers and repeats must be at least 1")
    facts = machine()  # first, or its load would be this benchmark's own
    if device.type == "cuda":
        torch.cuda.set_device(device)
    split = Stream.open(stream_path).split(0, "train")
    contenders = _contenders(split, size, batch, workers, device)
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    with _single_threaded():
        for turn in range(repeats):
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                turns[name].append(_measure(contenders[name], AHEAD * workers, seconds))
                if progress:
                    speed = turns[name][-1].images_per_second
                    line = f"turn {turn + 1} of {repeats}: {name} {speed:,.0f} images/s"
                    print(line, file=sys.stderr, flush=True)
    rows = [_row(name, of_name, turns[USUAL]) for name, of_name in turns.items()]
    settings = {
        "size": size,
        "batch": batch,
        "workers": workers,
        "repeats": repeats,
        "seconds": seconds,
        "device": str(device),
        "images": len(split),
    }
    return BenchResult(rows, facts, settings)


def _contenders(
    split: Split, size: int, batch: int, workers: int, device: torch.device
) -> dict[str, Callable[[], Made]]:
    """What starts each of them, by name."""
    config = ViewsConfig(size=size, workers=workers, prefetch=AHEAD * workers)
    if size > 64:
        config = config.model_copy(update={"blur": (1.0, 0.1)})
    order = Order(seed=0, task=0, size=len(split), batch_size=batch, lanes=1)
    names = ("dali", "torch") if resolve("auto") == "dali" else ("torch",)
    contenders: dict[str, Callable[[], Made]] = {}
    for name in names:
        own = config.model_copy(update={"backend": name})
        contenders[name] = partial(_ours, Loader(order, {0: split}, own, device=device))
    # The index has every shard of the split; ours opens no other either.
    start = partial(
        baseline_loader.batches, split.shards, config, batch, workers, AHEAD, device=device
    )
    contenders[USUAL] = start
    if any(config.blur):
        contenders[f"{USUAL}, Pillow's blur"] = partial(start, pillow_blur=True)
    return contenders


def _ours(loader: Loader) -> Made:
    steps = ((epoch, step) for epoch in count() for step in range(loader.order.steps_per_epoch))
    for made in loader.batches(steps):
        made.labels.to(loader.device, non_blocking=True)
        reach(moment(loader.device))
        yield len(made.ids), None


def _measure(start: Callable[[], Made], warm_up: int, seconds: float) -> Turn:
    """One turn. The workers' clocks are read at their last batches before and in it."""
    before: dict[int, float] = {}
    after: dict[int, float] = {}
    with closing(start()) as batches:
        for _ in range(warm_up):
            _, worker = next(batches)
            if worker is not None:
                before[worker[0]] = worker[1]
        images = 0
        wall, cpu = time.perf_counter(), time.process_time()
        # Until every worker has made a batch, some of their time would go uncounted.
        while time.perf_counter() - wall < seconds or not images or before.keys() - after.keys():
            made, worker = next(batches)
            images += made
            if worker is not None:
                after[worker[0]] = worker[1]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cpu += sum(clock - before[process] for process, clock in after.items())
    return Turn(images / wall, 1000 * cpu / images)


def _row(name: str, turns: list[Turn], of_usual: list[Turn]) -> Row:
    speeds, costs = _columns(turns)
    usual_speeds, usual_costs = _columns(of_usual)
    speed, cost = statistics.median(speeds), statistics.median(costs)
    return Row(
        name=name,
        images_per_second=speed,
        cpu_ms_per_image=cost,
        images_per_second_spread=(min(speeds), max(speeds)),
        cpu_ms_per_image_spread=(min(costs), max(costs)),
        times_images_per_second=speed / statistics.median(usual_speeds),
        times_per_cpu_second=statistics.median(usual_costs) / cost,
    )


def _around(spread: tuple[float, float]) -> str:
    least, largest = spread
    return f"±{100 * (largest - least) / (largest + least):.0f} %"


def _columns(turns: list[Turn]) -> tuple[list[float], list[float]]:
    return [turn.images_per_second for turn in turns], [turn.cpu_ms_per_image for turn in turns]


@contextmanager
def _single_threaded() -> Iterator[None]:
    """torch's own threads off, as in a DataLoader's workers: `workers` is all there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
