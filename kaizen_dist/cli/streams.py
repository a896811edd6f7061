"""Verbs about streams: prepare, extend, verify, inspect."""

import json
import os
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, StreamFolder, app, found
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.formatting import plural

if TYPE_CHECKING:
    from kaizen_dist.stream.manifest import Stream

_AS_BEGUN = "as the stream was begun"

Source = Annotated[
    str,
    typer.Argument(
        help="digits | folder:PATH | images:PATH | domains:PATH | table:FILE | webdataset:PATTERN"
        " | parquet:PATTERN | hf:NAME | torchvision:NAME:ROOT | module:Class:ARG"
    ),
]
Scenario = Annotated[
    str | None,
    typer.Option(
        help="class | data | domain | task",
        show_default="class; task for a table with a column task",
    ),
]
Workers = Annotated[int, typer.Option(help="Worker processes.")]
MaxBad = Annotated[float, typer.Option(help="Largest accepted share of images that do not decode.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out whatever is faulty in the source.")
]
Worker = Annotated[
    str | None,
    typer.Option(
        help="Share the work: this is process I of N, from 0, written I/N.",
        show_default="by srun's variables",
    ),
]
DomainOrder = Annotated[
    str | None, typer.Option(help="Order of the domains as tasks: photo,sketch,...")
]


@app.command()
def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder of the stream.")],
    scenario: Scenario = None,
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
    upright: Annotated[
        bool,
        typer.Option("--upright/--as-stored", help="Turn images as their EXIF orientation says."),
    ] = True,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 2000,
    classes_per_task: Annotated[
        str | None, typer.Option(help="Which classes come when, in place of --tasks: a,b;c,d")
    ] = None,
    domain_order: DomainOrder = None,
    workers: Workers = 1,
    max_bad: MaxBad = 0.001,
    skip_bad: SkipBad = False,
    worker: Worker = None,
) -> None:
    """Cut a source of images into tasks and write WebDataset shards for each.

    Lists what each folder of the source was used as, and what was ignored. After an interruption
    the same command continues; on a finished stream it does nothing, but refuses a source that has
    changed: `extend` adds what is new.

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
        upright=upright,
        shard_size=shard_size,
        domain_order=_listed(domain_order),
        classes_per_task=_groups(classes_per_task),
        workers=workers,
        max_bad=max_bad,
        skip_bad=skip_bad,
        worker=_share(worker),
    )
    say(f"{out}: {_size(stream)}", error=False)


@app.command()
def extend(
    stream: StreamFolder,
    source: Source,
    scenario: Scenario = None,
    tasks: Annotated[
        int | None, typer.Option(help="Tasks to cut into (1; with domain: one each).")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Take these classes of the source only: lion,tiger")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new tasks.")] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share held out where the source has no validation part.", show_default=_AS_BEGUN
        ),
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(help="Share of images that keep their label.", show_default=_AS_BEGUN),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(help="Scale larger images down to this shorter side.", show_default=_AS_BEGUN),
    ] = None,
    domain_order: DomainOrder = None,
    workers: Workers = 1,
    max_bad: MaxBad = 0.001,
    skip_bad: SkipBad = False,
    worker: Worker = None,
) -> None:
    """Add tasks at the end of a stream: new classes, or more images of known ones.

    Images of this source that the stream has already are left out, so the same folder may grow and
    be given again. After an interruption the same command continues. Trainings on the stream are
    not disturbed: they see the new tasks when their next task begins.

    Example: kaizen-dist extend streams/animals folder:photos --classes lion,tiger
    """
    from kaizen_dist.stream.prepare import extend as run

    before = _tasks(stream)
    extended = run(
        stream,
        source,
        scenario=scenario,
        tasks=tasks,
        classes=_listed(classes),
        name=name,
        val_fraction=val_fraction,
        labels=labels,
        resize=resize,
        domain_order=_listed(domain_order),
        workers=workers,
        max_bad=max_bad,
        skip_bad=skip_bad,
        worker=_share(worker),
    )
    _say_added(extended, before)
    say(f"{stream}: {_size(extended)}", error=False)


def _say_added(extended: "Stream", before: int) -> None:
    for number, task in enumerate(extended.tasks[before:], before + 1):
        names = ", ".join(extended.classes[label] for label in task.classes) or "no known class"
        new = f"; new classes: {len(task.new_classes)}" if task.new_classes else ""
        shown = shorten(names, 60, placeholder=" ...")
        say(f"task {number}: {task.train:,} training images of {shown}{new}", error=False)


def _listed(text: str | None) -> list[str] | None:
    return text.split(",") if text else None


def _groups(text: str | None) -> list[list[str]] | None:
    return [group.split(",") for group in text.split(";")] if text else None


def _share(worker: str | None) -> tuple[int, int] | None:
    """The number of this process and how many there are: as given, or as srun started them."""
    if worker is None and "SLURM_STEP_ID" in os.environ:
        number, count = os.environ.get("SLURM_PROCID", "0"), os.environ.get("SLURM_STEP_NUM_TASKS")
        worker = f"{number}/{count or 1}"
    if worker is None:
        return None
    number, _, count = worker.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--worker {worker}: write I/N, e.g. 0/4")
    return None if count == "1" else (int(number), int(count))


def _tasks(stream: Path) -> int:
    from kaizen_dist.stream.manifest import load_manifest

    return len(load_manifest(stream).tasks)


def _size(stream: "Stream") -> str:
    counts = stream.manifest.counts
    return (
        f"{plural(len(stream), 'task')}, {plural(stream.num_classes, 'class', 'classes')}, "
        f"{plural(counts.train, 'training image')} "
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
