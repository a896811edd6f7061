"""The `kaizen-dist` command: one function a verb, and no logic.

Heavy imports are made inside the verbs, so that `--help` answers at once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from kaizen_dist import __version__
from kaizen_dist.errors import Interrupted, KaizenError, UsageError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continual self-supervised learning with continual fine-tuning, distributed (Kaizen).",
)

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/digits.yaml.")]
StreamFolder = Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist prepare`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ...", show_default=False)
]


def main() -> None:
    """Run a verb; expected errors end with their message and exit code."""
    rank = os.environ.get("RANK", "0")
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(prog_name="kaizen-dist")
    except KaizenError as error:
        # All ranks read the same configuration: one of them is enough to say what is wrong.
        if rank == "0" or not isinstance(error, UsageError):
            where = f"rank {rank}: " if "RANK" in os.environ else ""
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"[bold red]error:[/] {where}", end=""
            )
            print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        if rank == "0":
            print("interrupted; the same command goes on where it can", file=sys.stderr)
        sys.exit(stop.exit_code)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _version(asked: bool) -> None:
    if asked:
        print(f"kaizen-dist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="digits | folder:PATH | domains:PATH | torchvision:NAME:ROOT"),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the stream.")],
    scenario: Annotated[str, typer.Option(help="class | data | domain")] = "class",
    tasks: Annotated[
        int | None, typer.Option(help="Tasks to cut into (5; with domain: one each).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order, held-out part and labels.")] = 5,
    val_fraction: Annotated[
        float, typer.Option(help="Held out where the source has no validation part.")
    ] = 0.2,
    labels: Annotated[float, typer.Option(help="Share of images that keep their label.")] = 1.0,
    resize: Annotated[
        int | None, typer.Option(help="Scale larger images down to this shorter side.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images a shard.")] = 2000,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    max_bad: Annotated[float, typer.Option(help="Share of broken images to put up with.")] = 0.001,
    domain_order: Annotated[
        str | None, typer.Option(help="Domains in the order of the tasks: photo,sketch,...")
    ] = None,
) -> None:
    """Cut a source of images into tasks and write WebDataset shards for each.

    Interrupted, the same command goes on where it was; finished, it does nothing.

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
    counts = stream.manifest.counts
    print(
        f"{out}: {len(stream)} tasks, {stream.num_classes} classes, {counts.train:,} training "
        f"images ({counts.labelled:,} labelled), {counts.val:,} validation, {counts.bad} left out"
    )


@app.command()
def verify(
    stream: StreamFolder,
    decode: Annotated[bool, typer.Option(help="Also decode every image.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Check a stream's counts, sizes and checksums; exit 3 with the names of what is wrong.

    Example: kaizen-dist verify streams/digits --decode
    """
    from kaizen_dist.stream.verify import verify as run

    report = run(stream, decode=decode, workers=workers)
    report.raise_if_bad()
    print(f"{stream}: whole")


@app.command()
def inspect(
    stream: StreamFolder,
    task: Annotated[int, typer.Option(help="Task, from 0.")] = 0,
    epoch: Annotated[int, typer.Option(help="Epoch, from 0.")] = 0,
    step: Annotated[int, typer.Option(help="Step within the epoch, from 0.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Global batch size (256).")] = None,
    world: Annotated[int, typer.Option(help="Put together as so many ranks would.")] = 1,
    lanes: Annotated[int | None, typer.Option(help="As train.lanes.")] = None,
    seed: Annotated[int | None, typer.Option(help="As train.seed.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's configuration; without one nothing is replayed."),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the two views into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the samples and augmentations of one step: a function of these arguments alone.

    Example: kaizen-dist inspect streams/digits --task 1 --epoch 0 --step 3 --batch 32 --world 4
    """
    from kaizen_dist import inspection
    from kaizen_dist.config import load
    from kaizen_dist.stream.manifest import Stream

    given = {"train.batch_size": batch, "train.lanes": lanes, "train.seed": seed}
    if config is None:
        given["replay.fraction"] = 0
    settings = load(config, [f"{k}={v}" for k, v in given.items() if v is not None])
    opened = Stream.open(stream)
    if not 0 <= task < len(opened):
        raise UsageError(f"--task {task}: {stream} has tasks 0 to {len(opened) - 1}")
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


@app.command()
def train(
    config: ConfigFile,
    stream: Annotated[Path, typer.Option(help="A folder made by `kaizen-dist prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    overrides: Overrides = None,
    procs: Annotated[int, typer.Option(min=1, help="Start so many ranks on this machine.")] = 1,
    summary: Annotated[bool, typer.Option(help="Print the metrics at the end.")] = True,
) -> None:
    """Train task after task: alone, with --procs N, or under torchrun.

    The same command again goes on where the last checkpoint stands.

    Example: kaizen-dist train configs/digits.yaml --stream streams/digits --out runs/a
    train.epochs=20 train.seed=1
    """
    from kaizen_dist import run
    from kaizen_dist.config import load
    from kaizen_dist.stream.manifest import Stream

    settings = load(config, overrides or ())
    opened = Stream.open(stream)
    if procs > 1 and "RANK" not in os.environ:
        from kaizen_dist.engine.local import launch

        run.check(settings, opened, procs)
        run.check_folder(out, settings, opened)
        arguments = ["train", str(config), "--stream", str(stream), "--out", str(out)]
        arguments += [] if summary else ["--no-summary"]
        raise typer.Exit(launch([*arguments, *(overrides or ())], procs))

    from kaizen_dist.engine.process import start
    from kaizen_dist.report.runs import load_run
    from kaizen_dist.report.table import summary_table
    from kaizen_dist.trainer import train as train_all

    with start(settings.parallel, settings.train.threads) as process:
        train_all(settings, opened, out, process)
        if process.main and summary:
            Console().print(summary_table([load_run(out)]))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (RUN/report.html for a single run).")
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Print the metrics as Markdown instead.")] = False,
) -> None:
    """Write one self-contained page about a run, or about several side by side.

    Example: kaizen-dist report runs/kaizen runs/no_distill --out compare.html
    """
    from kaizen_dist.report.page import write_report
    from kaizen_dist.report.runs import load_run
    from kaizen_dist.report.table import markdown_table

    if markdown:
        print(markdown_table([load_run(run) for run in runs]), end="")
    else:
        print(write_report(runs, out))


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for stream and run.")] = Path("demo"),
    config: Annotated[Path, typer.Option(help="A configuration for digits.")] = Path(
        "configs/digits.yaml"
    ),
    procs: Annotated[int, typer.Option(min=1, help="Ranks.")] = 2,
) -> None:
    """See it all on embedded images: prepare, train on two processes, report.

    Example: kaizen-dist demo --out /tmp/demo
    """
    from kaizen_dist.demo import run_demo

    raise typer.Exit(run_demo(out, config, procs))
