"""Verbs that measure: bench loader, stream, checkpoint, step, train, scaling."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli import options
from kaizen_dist.cli.app import STREAM_PLACE, ConfigFile, Overrides, StreamFolder, app
from kaizen_dist.common.errors import UsageError

bench = typer.Typer(no_args_is_help=True, help="Measure how fast the parts are on this machine.")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Classes = Annotated[int, typer.Option(min=1, help="Classes of the continual classifier.")]
StreamPlace = Annotated[str, typer.Option(help=STREAM_PLACE)]
Repeats = Annotated[int, typer.Option(min=1, help="Turns of each, interleaved.")]


@bench.command("loader")
def bench_loader(
    stream: StreamFolder,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.")] = 32,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 256,
    workers: Annotated[int, typer.Option(help="Threads, or processes of the usual way.")] = 2,
    repeats: Annotated[int, typer.Option(help="Turns of each, interleaved.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 4.0,
    device: Annotated[
        str | None,
        typer.Option(help="Device of the views: cuda, cuda:1, cpu.", show_default="GPU, or cpu"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Images per second and CPU time per image of the view backends and of the usual way.

    Example: kaizen-dist bench loader streams/digits --size 32 --workers 2
    """
    from kaizen_dist.bench import loader

    loader.bench_loader(
        stream,
        size=size,
        batch=batch,
        workers=workers,
        repeats=repeats,
        seconds=seconds,
        device=loader.device_named(device),
    ).print(as_json)


@bench.command("stream")
def bench_stream(
    samples: Annotated[int, typer.Option(help="Samples of the synthetic stream.")] = 1_280_000,
    ordered: Annotated[
        int, typer.Option(help="Samples of the task whose order is measured alone.")
    ] = 100_000_000,
    batch: Annotated[int, typer.Option(help="Images of a step, over all ranks.")] = 4096,
    world: Annotated[int, typer.Option(help="Ranks; rank 0 opens and seeks.")] = 1,
    repeats: Annotated[int, typer.Option(help="Steps, each at random.")] = 50,
    as_json: Json = False,
) -> None:
    """Time and memory that a very large stream costs a rank to open, to seek and to order.

    Example: kaizen-dist bench stream --samples 1280000 --batch 4096
    """
    from kaizen_dist.bench import stream

    stream.bench_stream(
        samples=samples, ordered=ordered, batch=batch, world=world, repeats=repeats
    ).print(as_json)


@bench.command("checkpoint")
def bench_checkpoint(
    config: ConfigFile,
    overrides: Overrides = None,
    classes: Classes = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Saves.")] = 5,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder to save to.", show_default="that of temporary files"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cost of a checkpoint: stall, size, time to restore. Also under torchrun.

    Example: kaizen-dist bench checkpoint configs/digits.yaml
    """
    from kaizen_dist.bench.checkpoint import bench_checkpoint
    from kaizen_dist.config import load
    from kaizen_dist.distributed.context import start

    settings = load(config, overrides or ())
    with start(settings.parallel, settings.train.threads) as context:
        result = bench_checkpoint(settings, classes, repeats, context, folder)
        if context.main:
            result.print(as_json)


@bench.command("step")
def bench_step(
    config: ConfigFile,
    overrides: Overrides = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="A further contender: overrides, separated by spaces. Repeatable."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All methods and engines.")] = False,
    eager: Annotated[bool, typer.Option(help="Also measure the step written plainly.")] = True,
    classes: Classes = 100,
    repeats: Repeats = 5,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of a turn, with a pause and without.", show_default="1; on a GPU 10"
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace of a step, for Perfetto.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Speed, parts, memory and losses of a training step on random images. Also under torchrun.

    Example: kaizen-dist bench step configs/cifar100_byol.yaml train.batch_size=64
    --also parallel.precision=bf16
    """
    from kaizen_dist.bench.contender import Contender
    from kaizen_dist.bench.step import bench_step
    from kaizen_dist.config import load
    from kaizen_dist.distributed.context import start

    own = overrides or []
    settings = load(config, own)
    others = [Contender(more, load(config, [*own, *more.split()])) for more in also or ()]
    with start(settings.parallel, settings.train.threads) as context:
        result = bench_step(
            settings,
            classes,
            context,
            others=others,
            grid=grid,
            eager=eager,
            repeats=repeats,
            steps=steps,
            profile=profile,
        )
        if context.main:
            result.print(as_json)


@bench.command("train")
def bench_train(
    config: ConfigFile,
    stream: StreamPlace,
    overrides: Overrides = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps that count, with a pause and without.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Speed of training with the real loader, and its waits. Also under torchrun.

    Example: kaizen-dist bench train configs/digits.yaml --stream streams/digits --steps 10
    """
    from kaizen_dist.bench.train import bench_train
    from kaizen_dist.config import load
    from kaizen_dist.distributed.context import start
    from kaizen_dist.stream.manifest import Stream

    settings = load(config, overrides or ())
    opened = Stream.open(stream, settings.stream)
    with start(settings.parallel, settings.train.threads) as context:
        result = bench_train(settings, opened, context, steps)
        if context.main:
            result.print(as_json)


@bench.command("scaling")
def bench_scaling(
    config: ConfigFile,
    stream: StreamPlace,
    out: Annotated[Path, typer.Option(help="Folder of the results, on a disk all nodes see.")],
    overrides: Overrides = None,
    nodes: Annotated[
        str | None, typer.Option(help="Counts of nodes, 1,2,4: in a Slurm job, or submits one.")
    ] = None,
    procs: Annotated[str | None, typer.Option(help="Instead: ranks of this machine, 1,2.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all counts.")] = 3,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of a turn, with a pause and without.")
    ] = 20,
    profile: options.Profile = None,
    gpus_per_node: options.GpusPerNode = None,
    ranks_per_node: options.RanksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    time: Annotated[str, typer.Option(help="Time limit of the job.")] = "01:00:00",
    mem: options.Memory = None,
    partition: options.Name = None,
    account: options.Name = None,
    qos: options.Name = None,
    constraint: options.Name = None,
    container: options.Container = None,
    as_json: Json = False,
) -> None:
    """Weak and strong scaling: efficiency, and where the time of a step goes, at every count.

    The configuration's batches are those of one node (with --procs: of one rank).

    Example: kaizen-dist bench scaling configs/imagenet100_byol.yaml --stream streams/imagenet100
    --out scaling --nodes 1,2,4 --profile slurm/profiles/example.yaml
    """
    from kaizen_dist.bench import scaling
    from kaizen_dist.bench.scaling_plan import ScalingRequest
    from kaizen_dist.launch import resources
    from kaizen_dist.launch import scaling as cluster

    flags = {name: value for name, value in locals().items() if name in resources.FIELDS}
    if (nodes is None) == (procs is None):
        raise UsageError("name either --nodes 1,2,4 (of a cluster) or --procs 1,2 (ranks here)")
    given = [str(config), *(overrides or ())]
    asked = ScalingRequest(given, stream, out, nodes or procs or "", repeats, steps)
    found = scaling.measure_here(asked) if procs else cluster.measure(asked, profile, flags)
    if isinstance(found, cluster.Queued):
        print(json.dumps(found.to_json()) if as_json else found.message)
        return
    found.print(as_json)
    found.raise_failures()
