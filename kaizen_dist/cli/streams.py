"""Verbs about streams: prepare, extend, verify."""

import os
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli.app import StreamFolder, app
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.formatting import plural

if TYPE_CHECKING:
    from kaizen_dist.stream.manifest import Stream

_AS_BEGUN = "as the stream was begun"
_HELD_OUT = "Share held out where the source has no validation part."
_RESIZED = "Scale larger images down to this shorter side."

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
Link = Annotated[
    bool,
    typer.Option(
        "--link", help="Read the tars of webdataset: where they lie, in place of a copy of them."
    ),
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
    val_fraction: Annotated[float, typer.Option(help=_HELD_OUT)] = 0.2,
    labels: Annotated[float, typer.Option(help="Share of images that keep their label.")] = 1.0,
    resize: Annotated[int | None, typer.Option(help=_RESIZED)] = None,
    upright: Annotated[
        bool,
        typer.Option("--upright/--as-stored", help="Turn images as their EXIF orientation says."),
    ] = True,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 2000,
    classes_per_task: Annotated[
        str | None, typer.Option(help="Which classes come when, in place of --tasks: a,b;c,d")
    ] = None,
    domain_order: DomainOrder = None,
    link: Link = False,
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
        link=link,
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
        float | None, typer.Option(help=_HELD_OUT, show_default=_AS_BEGUN)
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(help="Share of images that keep their label.", show_default=_AS_BEGUN),
    ] = None,
    resize: Annotated[int | None, typer.Option(help=_RESIZED, show_default=_AS_BEGUN)] = None,
    domain_order: DomainOrder = None,
    link: Link = False,
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
        link=link,
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
