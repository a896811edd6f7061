"""How fast a step is, where its time goes, and how much of the hardware it uses.

In comes a configuration; its learner stands in a second task (teacher, momentum network, replay)
and takes steps on random images that lie on the device already. Contenders: the step as
configured, the same with other settings, and `eager`, the step as one would write it down
(bench/reference_step.py), which is also what losses are held to: all begin with the same weights
and see the same images. They take turns in one run, every other time in the opposite order, so that
whatever else the machine does meets all of them; values are medians over all turns.

Every turn measures twice. Speed, CPU time and MFU are those of steps as a run takes them, where
nothing waits for the device between two steps. The parts are those of steps that are waited for one
by one (`synchronised_ms`), which on a GPU take longer: its host cannot queue work ahead.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.reference_step import EAGER
from kaizen_dist.bench.runner import Apart, Runner, Turn, arithmetic
from kaizen_dist.bench.step_timer import PARTS
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext, threads_of_rank
from kaizen_dist.engine import engine_class
from kaizen_dist.learner.flops import StepFlops, step_flops

CONFIGURED = "as configured"
GRID_METHODS = ("byol", "simclr", "mocov2plus", "vicreg")
GRID_ENGINES = ("ddp", "fsdp", "deepspeed")


@dataclass(frozen=True)
class Contender:
    name: str
    config: Config
    eager: bool = False


@dataclass(frozen=True)
class Row:
    """A contender: medians over its turns. `spread` is the least and the largest of a turn."""

    name: str
    images_per_second: float
    """Images of the task (each once, whatever its views; replay not counted), over all ranks."""
    cpu_ms_per_image: float
    """All threads of all ranks."""
    images_per_second_spread: tuple[float, float]
    cpu_ms_per_image_spread: tuple[float, float]
    step_ms: float
    """Of steps that follow each other without a pause; so is all above."""
    synchronised_ms: float
    """Of a step that is waited for before the next begins; so are the parts."""
    parts_ms: dict[str, float]
    """Of rank 0, medians: they need not add up to `synchronised_ms`."""
    parts_cpu_ms: dict[str, float]
    model_flops: dict[str, int]
    """Of a step over all ranks, by part."""
    flops_per_second: float
    precision: str
    """As in `parallel`; so are the next two, which concern GPUs alone."""
    tf32: bool
    deterministic: bool
    peak_flops: float
    """Of a large matrix product in the same precision (where that is fp32, in TF32 or not as the
    step is), per rank, measured between the turns."""
    mfu: float
    """`flops_per_second` over what all ranks' devices could do."""
    mfu_of_cpu_time: float
    """The same by CPU time, for a machine that does other work as well; of no meaning on GPUs."""
    memory_bytes: int
    """At most, of the rank that took most."""
    times_images_per_second: float | None
    """How many times more images a second than `eager` of the same method; so is the next."""
    times_per_cpu_second: float | None
    losses: list[dict[str, float]]
    """Of every step from the first on."""
    loss_difference: float | None
    """The largest relative difference of a step's loss from that of `eager`."""


@dataclass(frozen=True)
class StepBench:
    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine": {...}, "settings": {...}}."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """For a terminal: speed, parts and losses."""
        return [self._speed(), self._parts(), self._losses()]

    def _speed(self) -> Table:
        title = "{backbone} at {size} px, batch {batch} + {replay}, {ranks} rank(s) of {threads} "
        table = _table((title + "thread(s)").format(**self.settings))
        for name in ("images/s", "CPU ms/image", "x images/s", "x per CPU s", "MFU", "GB"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.images_per_second:,.1f} {_around(row.images_per_second_spread)}",
                f"{row.cpu_ms_per_image:.2f} {_around(row.cpu_ms_per_image_spread)}",
                _times(row.times_images_per_second),
                _times(row.times_per_cpu_second),
                f"{row.mfu:.0%}",
                f"{row.memory_bytes / 1e9:.2f}",
            )
        return table

    def _parts(self) -> Table:
        table = Table(title="where the time goes, ms a step (CPU ms)")
        table.add_column("part", no_wrap=True)
        for row in self.rows:
            table.add_column(row.name, justify="right")
        for part in PARTS:
            cells = (f"{r.parts_ms[part]:,.1f} ({r.parts_cpu_ms[part]:,.1f})" for r in self.rows)
            table.add_row(part, *cells)
        table.add_row("all", *(f"{row.synchronised_ms:,.1f}" for row in self.rows))
        table.add_row("without a pause", *(f"{row.step_ms:,.1f}" for row in self.rows))
        return table

    def _losses(self) -> Table:
        table = _table("losses of the first and the last step")
        for name in ("first", "last", "apart"):
            table.add_column(name, justify="right")
        for row in self.rows:
            apart = row.loss_difference
            table.add_row(
                row.name,
                f"{row.losses[0]['loss']:.7g}",
                f"{row.losses[-1]['loss']:.7g}",
                "" if apart is None else f"{apart:.1e}",
            )
        return table


def bench_step(
    config: Config,
    classes: int,
    context: RankContext,
    *,
    others: Sequence[Contender] = (),
    grid: bool = False,
    eager: bool = True,
    repeats: int = 5,
    steps: int | None = None,
    profile: str | None = None,
) -> StepBench:
    """Measures the step as configured and the `others`; with `grid` all methods and engines.

    Args:
        config: what is computed; its method and engine are those of the grid's in turn.
        classes: of the continual classifier.
        process: one rank alone brings `eager` along; several measure what they are.
        others: contenders of the same method.
        grid: rows for every published method under every engine that there is.
        eager: whether `eager` takes part.
        repeats: turns of each, after one that is not counted.
        steps: of a turn, each way; a GPU takes ten where nothing else is said, a CPU one.
        profile: a file for a trace of one step more, as configured.

    Raises:
        UsageError: if a configuration cannot be run.
        KaizenError: if a contender fails.
    """
    facts = machine()  # first, or its load would be this benchmark's own
    steps = steps or (10 if context.device.type == "cuda" else 1)
    eager = eager and context.world_size == 1
    rows: list[Row] = []
    left_out: list[str] = []
    groups = _grid(config, context, left_out) if grid else [[_configured(config), *others]]
    for group in groups:
        if eager:
            group = [_eager(config=group[0].config, grid=grid), *group]
        rows += _measure(group, classes, context, repeats, steps, profile)
    settings = {
        "backbone": config.model.backbone,
        "size": config.views.size,
        "batch": config.train.batch_size,
        "replay": config.replay.batch_size if config.replay.fraction > 0 else 0,
        "ranks": context.world_size,
        "threads": threads_of_rank(config.train.threads),
        "repeats": repeats,
        "steps": steps,
        "left_out": left_out,
    }
    return StepBench(rows, facts, settings)


def _configured(config: Config) -> Contender:
    return Contender(CONFIGURED, config)


def _eager(config: Config, grid: bool) -> Contender:
    parallel = config.parallel.model_copy(update={"precision": "fp32"})
    name = f"{config.method}, {EAGER}" if grid else EAGER
    return Contender(name, config.model_copy(update={"parallel": parallel}), eager=True)


def _grid(config: Config, context: RankContext, left_out: list[str]) -> list[list[Contender]]:
    """The contenders of every method; what cannot be run is noted in `left_out`."""
    return [_engines(config, method, context, left_out) for method in GRID_METHODS]


def _engines(
    config: Config, method: str, context: RankContext, left_out: list[str]
) -> list[Contender]:
    found = []
    ssl = config.ssl if method == config.method else {}
    for engine in GRID_ENGINES:
        stage = 0 if config.optim.name == "lars" else config.parallel.zero_stage
        parallel = config.parallel.model_copy(update={"engine": engine, "zero_stage": stage})
        own = config.model_copy(update={"method": method, "ssl": ssl, "parallel": parallel})
        name = f"{method}, {engine}" + (f" {stage}" if engine == "deepspeed" else "")
        try:
            if engine == "deepspeed" and find_spec("deepspeed") is None:
                raise UsageError("it is not installed")
            if engine == "fsdp" and context.world_size == 1:
                raise UsageError("alone it has nothing to cut and is ddp")
            engine_class(engine).check(own, context.world_size)
        except UsageError as error:
            left_out.append(f"{name}: {error}")
            continue
        found.append(Contender(name, own))
    return found


def _measure(
    group: Sequence[Contender],
    classes: int,
    context: RankContext,
    repeats: int,
    steps: int,
    profile: str | None,
) -> list[Row]:
    """The rows of contenders of one method."""
    place = Apart if context.world_size == 1 else Runner
    runners: dict[str, Apart | Runner] = {}
    turns: dict[str, list[Turn]] = {contender.name: [] for contender in group}
    try:
        for contender in group:
            runner = place(contender.config, classes, context, contender.eager)
            runners[contender.name] = runner
        for number in range(repeats + 1):
            for name in list(runners)[:: -1 if number % 2 else 1]:
                turns[name].append(runners[name].turn(steps if number else 1))
                if context.main:
                    _tell(number, repeats, name, turns[name][-1])
        if profile is not None and context.main:
            runners[next(c.name for c in group if not c.eager)].profile(profile)
    finally:
        for runner in runners.values():
            runner.close()
    first = group[0]
    of_eager = turns[first.name] if first.eager else None
    flops = step_flops(first.config, classes)
    return [
        _row(contender, context.exchange(turns[contender.name]), flops, of_eager)
        for contender in group
    ]


def _tell(number: int, repeats: int, name: str, turn: Turn) -> None:
    what = f"turn {number} of {repeats}" if number else "warm-up"
    print(f"{what}: {name}: {turn.free.seconds:.3f} s a step", file=sys.stderr, flush=True)


def _row(
    contender: Contender,
    ranks: Sequence[list[Turn]],
    flops: StepFlops,
    of_eager: list[Turn] | None,
) -> Row:
    """From the turns of every rank; the first turn warms up and gives losses only."""
    images = contender.config.train.batch_size
    own = ranks[0]
    walls = [turn.free.seconds for turn in own[1:]]
    synchronised = [step.seconds for turn in own[1:] for step in turn.steps]
    cpus = _cpu_seconds(ranks)
    parts = [parts for turn in own[1:] for parts in turn.parts]
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    peak, of_cpu = (statistics.median(t.peak_flops[i] for t in own[1:]) for i in (0, 1))
    losses = [loss for turn in own for loss in turn.losses]
    against = None
    if of_eager is not None:
        theirs = [loss for turn in of_eager for loss in turn.losses]
        against = (
            statistics.median(turn.free.seconds for turn in of_eager[1:]) / wall,
            statistics.median(_cpu_seconds([of_eager])) / cpu,
            max(
                abs(a["loss"] - b["loss"]) / abs(b["loss"])
                for a, b in zip(losses, theirs, strict=True)
            ),
        )
    return Row(
        name=contender.name,
        images_per_second=images / wall,
        cpu_ms_per_image=1000 * cpu / images,
        images_per_second_spread=(images / max(walls), images / min(walls)),
        cpu_ms_per_image_spread=(1000 * min(cpus) / images, 1000 * max(cpus) / images),
        step_ms=1000 * wall,
        synchronised_ms=1000 * statistics.median(synchronised),
        parts_ms={n: 1000 * statistics.median(p[n].seconds for p in parts) for n in PARTS},
        parts_cpu_ms={n: 1000 * statistics.median(p[n].cpu_seconds for p in parts) for n in PARTS},
        model_flops=asdict(flops),
        flops_per_second=flops.total / wall,
        **arithmetic(contender.config),
        peak_flops=peak,
        mfu=flops.total / wall / (peak * len(ranks)),
        mfu_of_cpu_time=flops.total / cpu / of_cpu,
        memory_bytes=max(turn.memory_bytes for rank in ranks for turn in rank),
        times_images_per_second=against[0] if against else None,
        times_per_cpu_second=against[1] if against else None,
        losses=losses,
        loss_difference=against[2] if against else None,
    )


def _cpu_seconds(ranks: Sequence[list[Turn]]) -> list[float]:
    """Of a step in every turn that counts, over all ranks."""
    columns = [[turn.free.cpu_seconds for turn in rank[1:]] for rank in ranks]
    return [sum(column) for column in zip(*columns, strict=True)]


def _table(title: str) -> Table:
    table = Table(title=title)
    table.add_column("step")
    return table


def _around(spread: tuple[float, float]) -> str:
    """Half of the spread, relative to its middle."""
    low, high = spread
    return f"±{(high - low) / (high + low):.0%}"


def _times(times: float | None) -> str:
    return "" if times is None else f"{times:.2f}"
