"""Speed of a training step, the time of its parts, and its use of the hardware.

A configuration's learner stands in a second task (teacher, momentum network, replay) and takes
steps on random images that lie on the device already. Contenders: the step as configured, the same
with other settings, and `eager`, the step written plainly (`reference_step`), which is also the
reference for the losses: all begin with the same weights and see the same images. They take turns
in one run; values are medians over all turns. Every turn measures in both ways of `steps`: speed,
CPU time and MFU of free-running steps, parts of synchronised ones.

Columns of a row, beside those of `steps.step_row` and `result.compared` (with `eager` of the same
method; null without it): `model_flops` (of a step over all ranks, by part), `flops_per_second`,
`peak_flops` (of a large matrix product in the same precision, per rank, between the turns),
`mfu` (`flops_per_second` over the peak of all ranks), `mfu_of_cpu_time` (the same by CPU time, for
a busy machine; meaningless on GPUs), `memory_bytes` (peak, of the rank with the largest), `losses`
(of every step from the first), `loss_difference` (the largest relative one from `eager`).
"""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from kaizen_dist.bench.contender import Contender, LocalContender, RemoteContender, StepTurn
from kaizen_dist.bench.machine import machine
from kaizen_dist.bench.result import (
    SPEED_HEAD,
    BenchResult,
    Row,
    Sheet,
    Spent,
    compared,
    in_turns,
    speed_cells,
)
from kaizen_dist.bench.step_timer import PARTS
from kaizen_dist.bench.steps import step_row
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext, threads_of_rank
from kaizen_dist.engine import engine_class
from kaizen_dist.learner.flops import StepFlops, step_flops

EAGER = "eager"
CONFIGURED = "as configured"
GRID_METHODS = ("byol", "simclr", "mocov2plus", "vicreg")
GRID_ENGINES = ("ddp", "fsdp", "deepspeed")


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
    profile: Path | None = None,
) -> BenchResult:
    """Measure the step as configured and the `others`; with `grid` all methods and engines.

    Args:
        config: of the step; with `grid`, method and engine are replaced in turn.
        classes: of the continual classifier.
        context: a single rank measures `eager` as well.
        others: contenders of the same method.
        grid: rows for every published method under every engine that can run.
        eager: whether `eager` takes part.
        repeats: turns of each, after a warm-up.
        steps: of a turn, each way; None: ten on a GPU, one on a CPU.
        profile: a file for a trace of one further step, as configured.

    Raises:
        UsageError: if a configuration cannot be run.
        KaizenError: if a contender fails.
    """
    facts = machine()  # first, or its load would be this benchmark's own
    steps = steps or (10 if context.device.type == "cuda" else 1)
    left_out: list[str] = []
    groups = [[Contender(CONFIGURED, config), *others]]
    if grid:
        groups = [_engines(config, method, context, left_out) for method in GRID_METHODS]
    rows: list[Row] = []
    for group in groups:
        if eager and context.world_size == 1:
            group = [_eager(group[0].config, grid), *group]
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
    title = "{backbone} at {size} px, batch {batch} + {replay}, {ranks} rank(s) of {threads} "
    title = (title + "thread(s)").format(**settings)
    return BenchResult(rows, facts, settings, [_speeds(title, rows), _parts(rows), _losses(rows)])


def _eager(config: Config, grid: bool) -> Contender:
    parallel = config.parallel.model_copy(update={"precision": "fp32"})
    name = f"{config.method}, {EAGER}" if grid else EAGER
    return Contender(name, config.model_copy(update={"parallel": parallel}), eager=True)


def _engines(
    config: Config, method: str, context: RankContext, left_out: list[str]
) -> list[Contender]:
    """A method under every engine; those that cannot run are noted in `left_out`."""
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
                raise UsageError("on one rank there is nothing to shard; it would be ddp")
            engine_class(engine).check(own, context.world_size)
        except UsageError as error:
            left_out.append(f"{name}: {error}")
        else:
            found.append(Contender(name, own))
    return found


def _measure(
    group: Sequence[Contender],
    classes: int,
    context: RankContext,
    repeats: int,
    steps: int,
    profile: Path | None,
) -> list[Row]:
    """The rows of contenders of one method."""
    kind = RemoteContender if context.world_size == 1 else LocalContender
    running: list[LocalContender | RemoteContender] = []
    turns: list[list[StepTurn]] = [[] for _ in group]
    try:
        running += [kind(contender, classes, context) for contender in group]
        for number, index in in_turns(range(len(group)), repeats + 1):
            turns[index].append(running[index].turn(steps if number else 1))
            if context.main:
                kind_of_turn = f"turn {number} of {repeats}" if number else "warm-up"
                seconds = turns[index][-1].free.seconds
                say(f"{kind_of_turn}: {group[index].name}: {seconds:.3f} s a step")
        if profile is not None and context.main:
            next(r for c, r in zip(group, running, strict=True) if not c.eager).profile(profile)
    finally:
        for contender in running:
            contender.close()
    flops = step_flops(group[0].config, classes)
    rows = [
        _row(contender, context.exchange(own), flops)
        for contender, own in zip(group, turns, strict=True)
    ]
    baseline = rows[0] if group[0].eager else None
    return [row | _against(row, baseline) for row in rows]


def _row(contender: Contender, ranks: Sequence[list[StepTurn]], flops: StepFlops) -> Row:
    """From the turns of every rank; the first turn warms up and gives losses only."""
    counted = [rank[1:] for rank in ranks]
    turns = [
        Spent(same[0].free.seconds, sum(turn.free.cpu_seconds for turn in same))
        for same in zip(*counted, strict=True)
    ]
    parts = [step for turn in counted[0] for step in turn.parts]
    wall, cpu = (median(turn[i] for turn in turns) for i in (0, 1))
    peak, of_cpu = (median(turn.peak_flops[i] for turn in counted[0]) for i in (0, 1))
    return step_row(contender.name, contender.config, turns, parts) | {
        "model_flops": asdict(flops),
        "flops_per_second": flops.total / wall,
        "peak_flops": peak,
        "mfu": flops.total / wall / (peak * len(ranks)),
        "mfu_of_cpu_time": flops.total / cpu / of_cpu,
        "memory_bytes": max(turn.memory_bytes for rank in ranks for turn in rank),
        "losses": [loss for turn in ranks[0] for loss in turn.losses],
    }


def _against(row: Row, baseline: Row | None) -> Row:
    """The columns that compare a row with the reference step."""
    if baseline is None:
        names = ("times_images_per_second", "times_per_cpu_second", "loss_difference")
        return dict.fromkeys(names)
    pairs = zip(row["losses"], baseline["losses"], strict=True)
    apart = max(abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]) for ours, theirs in pairs)
    return compared(row, baseline) | {"loss_difference": apart}


def _speeds(title: str, rows: Sequence[Row]) -> Sheet:
    lines = [
        [r["name"], *speed_cells(r, (1, 2)), f"{r['mfu']:.0%}", f"{r['memory_bytes'] / 1e9:.2f}"]
        for r in rows
    ]
    return Sheet(title, ("step", *SPEED_HEAD, "MFU", "GB"), lines)


def _parts(rows: Sequence[Row]) -> Sheet:
    lines = [
        [part, *(f"{r['parts_ms'][part]:,.1f} ({r['parts_cpu_ms'][part]:,.1f})" for r in rows)]
        for part in PARTS
    ]
    for name, column in (("all", "synchronised_ms"), ("without a pause", "step_ms")):
        lines.append([name, *(f"{row[column]:,.1f}" for row in rows)])
    head = ("part", *(row["name"] for row in rows))
    return Sheet("where the time goes, ms a step (CPU ms)", head, lines)


def _losses(rows: Sequence[Row]) -> Sheet:
    lines = []
    for row in rows:
        first, last = (f"{row['losses'][index]['loss']:.7g}" for index in (0, -1))
        apart = row["loss_difference"]
        lines.append([row["name"], first, last, "" if apart is None else f"{apart:.1e}"])
    head = ("step", "first", "last", "apart")
    return Sheet("losses of the first and the last step", head, lines)
