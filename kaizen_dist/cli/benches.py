"""Verbs that measure: bench loader, stream, checkpoint, step, train."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kaizen_dist.cli.app import STREAM_PLACE, ConfigFile, Overrides, StreamFolder, app

bench = typer.Typer(no_args_is_help=True, help="Measure how fast the parts are on this machine.")
app.add_typer(bench, name="bench")


@bench.command("loader")
def bench_loader(
    stream: StreamFolder,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.")] = 32,
    batch: Annotated[int, typer.Option(help="Images a batch.")] = 256,
    workers: Annotated[int, typer.Option(help="Threads, or processes of the usual way.")] = 2,
    repeats: Annotated[int, typer.Option(help="Turns of each, interleaved.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Images per second and CPU time per image of the view backends and of the usual way.

    Example: kaizen-dist bench loader streams/digits --size 32 --workers 2
    """
    from kaizen_dist.bench.loader import bench_loader as run

    result = run(stream, size=size, batch=batch, workers=workers, repeats=repeats, seconds=seconds)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        Console().print(result.table())


@bench.command("stream")
def bench_stream(
    samples: Annotated[int, typer.Option(help="Of the stream made up to be opened.")] = 1_280_000,
    ordered: Annotated[
        int, typer.Option(help="Of the task whose order is asked alone.")
    ] = 100_000_000,
    batch: Annotated[int, typer.Option(help="Images of a step, over all ranks.")] = 4096,
    world: Annotated[int, typer.Option(help="Ranks; rank 0 opens and seeks.")] = 1,
    repeats: Annotated[int, typer.Option(help="Steps, each at random.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time and memory that a very large stream costs a rank to open, to seek and to order.

    Example: kaizen-dist bench stream --samples 1280000 --batch 4096
    """
    from kaizen_dist.bench.stream import bench_stream as run

    result = run(samples=samples, ordered=ordered, batch=batch, world=world, repeats=repeats)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        Console().print(result.table())


@bench.command("checkpoint")
def bench_checkpoint(
    config: ConfigFile,
    overrides: Overrides = None,
    classes: Annotated[int, typer.Option(help="Of the continual classifier.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Saves.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a checkpoint costs: the stall, the size, the time to come back. Also under torchrun.

    Example: kaizen-dist bench checkpoint configs/digits.yaml
    """
    from kaizen_dist.bench.checkpoint import bench_checkpoint as run
    from kaizen_dist.config import load
    from kaizen_dist.engine.process import start

    settings = load(config, overrides or ())
    with start(settings.parallel, settings.train.threads) as process:
        result = run(settings, classes, repeats, process)
        if not process.main:
            return
        if as_json:
            print(json.dumps(result.to_json()))
        else:
            Console().print(result.table())


@bench.command("step")
def bench_step(
    config: ConfigFile,
    overrides: Overrides = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="One contender more: overrides, separated by spaces. May be repeated."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All methods and engines.")] = False,
    eager: Annotated[bool, typer.Option(help="With the step as one would write it down.")] = True,
    classes: Annotated[int, typer.Option(min=1, help="Of the continual classifier.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each, interleaved.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 1,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace of a step, for Perfetto.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Speed, parts, memory and losses of a training step on random images. Also under torchrun.

    Example: kaizen-dist bench step configs/cifar100_byol.yaml train.batch_size=64
    --also parallel.precision=bf16
    """
    from kaizen_dist.bench.step import Contender
    from kaizen_dist.bench.step import bench_step as run
    from kaizen_dist.config import load
    from kaizen_dist.engine.process import start

    own = overrides or []
    settings = load(config, own)
    others = [Contender(more, load(config, [*own, *more.split()])) for more in also or ()]
    with start(settings.parallel, settings.train.threads) as process:
        result = run(
            settings,
            classes,
            process,
            others=others,
            grid=grid,
            eager=eager,
            repeats=repeats,
            steps=steps,
            profile=None if profile is None else str(profile),
        )
        if not process.main:
            return
        if as_json:
            print(json.dumps(result.to_json()))
        else:
            Console().print(*result.tables())


@bench.command("train")
def bench_train(
    config: ConfigFile,
    stream: Annotated[str, typer.Option(help=STREAM_PLACE)],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that count, after two.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Speed of training with the real loader, and what it waits for. Also under torchrun.

    Example: kaizen-dist bench train configs/digits.yaml --stream streams/digits --steps 10
    """
    from kaizen_dist.bench.train import bench_train as run
    from kaizen_dist.config import load
    from kaizen_dist.engine.process import start
    from kaizen_dist.stream.manifest import Stream

    settings = load(config, overrides or ())
    opened = Stream.open(stream, settings.stream)
    with start(settings.parallel, settings.train.threads) as process:
        result = run(settings, opened, process, steps)
        if not process.main:
            return
        if as_json:
            print(json.dumps(result.to_json()))
        else:
            Console().print(result.table())
