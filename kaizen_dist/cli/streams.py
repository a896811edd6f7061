"""Verbs about streams: prepare, verify, inspect."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, StreamFolder, app, found
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError

if TYPE_CHECKING:
    from kaizen_dist.stream.manifest import Stream


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="digits | folder:PATH | domains:PATH | torchvision:NAME:ROOT | module:Class:ARG"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the stream.")],
    scenario: Annotated[str, typer.Option(help="class | data | domain")] = "class",
    tasks: Annotated[
        int | None, typer.Option(help="Tasks to cut into (5; with domain: one each).")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the order, the held-out part and the labels.")
    ] = 5,
    val_fraction: Annotated[
        float, typer.Option(help="Share held out where the source has no validation part.")
    ] = 0.2,
    labels: Annotated[float, typer.Option(help="Share of images that keep their label.")] = 1.0,
    resize: Annotated[
        int | None, typer.Option(help="Scale larger images down to this shorter side.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 2000,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    max_bad: Annotated[
        float, typer.Option(help="Largest accepted share of images that do not decode.")
    ] = 0.001,
    domain_order: Annotated[
        str | None, typer.Option(help="Order of the domains as tasks: photo,sketch,...")
    ] = None,
) -> None:
    """Cut a source of images into tasks and write WebDataset shards for each.

    Lists what each folder of the source was used as, and what was ignored. After an interruption
    the same command continues; on a finished stream it does nothing, but refuses a source that has
    changed.

    Example: kaizen-dist prepare digits --out streams/digits --tasks 5
    """
    from kaizen_dist.stream.prepare import prepare as run

    stream = run(
        source,
        out,
        scenario=scenario,
        tasks=tasks,
        seed=seed,
        val_fraction=val_fraction,
        labels=labels,
        resize=resize,
        shard_size=shard_size,
        workers=workers,
        max_bad=max_bad,
        domain_order=domain_order.split(",") if domain_order else None,
    )
    say(f"{out}: {_size(stream)}", error=False)


def _size(stream: "Stream") -> str:
    counts = stream.manifest.counts
    return (
        f"{len(stream)} tasks, {stream.num_classes} classes, {counts.train:,} training images "
        f"({counts.labelled:,} labelled), {counts.val:,} validation, {counts.bad} left out"
    )


@app.command()
def verify(
    stream: StreamFolder,
    decode: Annotated[bool, typer.Option(help="Also decode every image.")] = False,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 1,
) -> None:
    """Check a stream's counts, sizes and checksums; exit 3 with the names of what is wrong.

    Example: kaizen-dist verify streams/digits --decode
    """
    from kaizen_dist.stream.verify import verify as run

    report = run(stream, decode=decode, workers=workers)
    report.raise_if_bad()
    say(f"{stream}: whole", error=False)


@app.command()
def inspect(
    stream: Annotated[str, typer.Argument(help=STREAM_PLACE)],
    task: Annotated[int, typer.Option(help="Task, from 0.")] = 0,
    epoch: Annotated[int, typer.Option(help="Epoch, from 0.")] = 0,
    step: Annotated[int, typer.Option(help="Step within the epoch, from 0.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Global batch size.", show_default="256, or what there is")
    ] = None,
    world: Annotated[int, typer.Option(help="Number of ranks among which the step is cut.")] = 1,
    lanes: Annotated[int | None, typer.Option(help="As train.lanes.")] = None,
    seed: Annotated[int | None, typer.Option(help="As train.seed.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=found, help="A run's configuration; without one nothing is replayed."
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the two views into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the samples and augmentations of one step: a function of these arguments alone.

    Example: kaizen-dist inspect streams/digits --task 1 --epoch 0 --step 3 --batch 32 --world 4
    """
    from kaizen_dist.config import load
    from kaizen_dist.stream.manifest import Stream
    from kaizen_dist.training import inspect as inspection

    if batch is not None and lanes is not None and batch % lanes:
        raise UsageError(f"--batch {batch}: no multiple of --lanes {lanes}")
    opened = Stream.open(stream, load(config).stream)
    if not 0 <= task < len(opened):
        raise UsageError(f"--task {task}: {stream} has tasks 0 to {len(opened) - 1}")
    images = opened.tasks[task].count("train")
    given = {"train.batch_size": batch, "train.lanes": lanes, "train.seed": seed}
    if config is None:
        given |= {"replay.fraction": 0, "replay.batch_size": lanes}
        given["train.batch_size"] = batch or inspection.default_batch(images, lanes or 1)
    settings = load(config, [f"{k}={v}" for k, v in given.items() if v is not None])
    wanted, cut = settings.train.batch_size, settings.lanes
    if wanted > cut * (images // cut):
        raise UsageError(
            f"--batch {wanted}: task {task} of {stream} has {images} training images; name one "
            f"that is smaller (and --lanes that divide it, {cut} as it is)"
        )
    try:
        shown = inspection.step_of(settings, opened, task, epoch, step, world)
    except IndexError as error:
        raise UsageError(f"--step {step}: {error}") from None
    if png is not None:
        alone = inspection.step_of(settings, opened, task, epoch, step, world_size=1)
        inspection.draw(alone, opened.classes).save(png)
    if as_json:
        print(json.dumps({"ids": shown.ids.tolist(), "digest": shown.digest}))
        return
    print(" ".join(f"{i}r" if r else f"{i}" for i, r in zip(shown.ids, shown.replay, strict=True)))
    print(
        f"{len(shown.ids)} samples ({int(shown.replay.sum())} replayed, marked r) in "
        f"{settings.lanes} lanes; {shown.steps_per_epoch} steps an epoch\ndigest {shown.digest}"
    )
