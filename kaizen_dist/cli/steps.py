"""The verb about a step of a training: inspect."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, app, found
from kaizen_dist.common.errors import UsageError


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
    from kaizen_dist.training.inspect import default_batch, draw, replay_order_of, step_of

    if batch is not None and lanes is not None and batch % lanes:
        raise UsageError(f"--batch {batch}: no multiple of --lanes {lanes}")
    opened = Stream.open(stream, load(config).stream)
    if not 0 <= task < len(opened):
        raise UsageError(f"--task {task}: {stream} has tasks 0 to {len(opened) - 1}")
    images = opened.tasks[task].count("train")
    given = {"train.batch_size": batch, "train.lanes": lanes, "train.seed": seed}
    if config is None:
        given |= {"replay.fraction": 0, "replay.batch_size": lanes}
        given["train.batch_size"] = batch or default_batch(images, lanes or 1)
    settings = load(config, [f"{k}={v}" for k, v in given.items() if v is not None])
    wanted, cut = settings.train.batch_size, settings.lanes
    if wanted > cut * (images // cut):
        raise UsageError(
            f"--batch {wanted}: task {task} of {stream} has {images} training images; name one "
            f"that is smaller (and --lanes that divide it, {cut} as it is)"
        )
    on_ranks = partial(step_of, settings, opened, task, epoch, step, replay_order_of(config))
    try:
        shown = on_ranks(world)
    except IndexError as error:
        raise UsageError(f"--step {step}: {error}") from None
    if png is not None:
        draw(on_ranks(1), opened.classes).save(png)
    if as_json:
        print(json.dumps({"ids": shown.ids.tolist(), "digest": shown.digest}))
        return
    print(" ".join(f"{i}r" if r else f"{i}" for i, r in zip(shown.ids, shown.replay, strict=True)))
    print(
        f"{len(shown.ids)} samples ({int(shown.replay.sum())} replayed, marked r) in "
        f"{settings.lanes} lanes; {shown.steps_per_epoch} steps an epoch\ndigest {shown.digest}"
    )
