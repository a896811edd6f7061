"""The `kaizen-dist` command: one function a verb, and no logic.

Heavy imports are made inside the verbs, so that `--help` answers at once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kaizen_dist import __version__
from kaizen_dist.errors import Interrupted, KaizenError, Preempted, UsageError

if TYPE_CHECKING:
    from kaizen_dist.config import Config

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Continual self-supervised learning with continual fine-tuning, distributed (Kaizen).",
)

ConfigFile = Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/digits.yaml.")]
StreamFolder = Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist prepare`.")]
_STREAM_PLACE = "A folder made by `kaizen-dist prepare`, or the URL of one: http(s)://, s3://, ..."
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
    except Preempted as stop:
        if rank == "0":
            print(f"preempted: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
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
    stream: Annotated[str, typer.Argument(help=_STREAM_PLACE)],
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
    opened = Stream.open(stream, settings.stream)
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
    stream: Annotated[str, typer.Option(help=_STREAM_PLACE)],
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
    from kaizen_dist.config import load

    arguments = ["train", str(config), "--stream", stream, "--out", str(out), *(overrides or ())]
    _train(load(config, overrides or ()), stream, out, procs, arguments, summary)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    overrides: Overrides = None,
    stream: Annotated[
        str | None, typer.Option(help="Where its stream lies now.", show_default="where it lay")
    ] = None,
    procs: Annotated[int, typer.Option(min=1, help="Start so many ranks on this machine.")] = 1,
    allow: Annotated[
        bool, typer.Option("--allow", help="Let overrides change what is computed.")
    ] = False,
    summary: Annotated[bool, typer.Option(help="Print the metrics at the end.")] = True,
) -> None:
    """Go on with a run by its folder alone, on any number of ranks that fits.

    Example: kaizen-dist resume runs/a checkpoint.every_steps=50 --procs 2
    """
    from kaizen_dist.run import own_config, own_stream

    settings = own_config(run, overrides or (), allow)
    place = stream or own_stream(run)
    arguments = ["resume", str(run), "--stream", place, *(overrides or ())]
    arguments += ["--allow"] if allow else []
    _train(settings, place, run, procs, arguments, summary, allow)


def _train(
    settings: "Config",
    stream: str,
    out: Path,
    procs: int,
    arguments: list[str],
    summary: bool,
    allow_changes: bool = False,
) -> None:
    """Train here, or start the same command `procs` times."""
    from kaizen_dist import run
    from kaizen_dist.stream.manifest import Stream
    from kaizen_dist.stream.stall import report_stalls

    report_stalls(settings.views.stall_seconds)
    opened = Stream.open(stream, settings.stream)
    if procs > 1 and "RANK" not in os.environ:
        from kaizen_dist.engine.local import launch

        run.check(settings, opened, procs)
        run.check_folder(out, settings, opened, allow_changes)
        arguments = [*arguments, *([] if summary else ["--no-summary"])]
        raise typer.Exit(launch(arguments, procs))

    from kaizen_dist.engine.process import start
    from kaizen_dist.report.runs import load_run
    from kaizen_dist.report.table import summary_table
    from kaizen_dist.trainer import train as train_all

    with start(settings.parallel, settings.train.threads) as process:
        train_all(settings, opened, out, process, allow_changes)
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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    task: Annotated[
        int | None, typer.Option(help="A finished task, from 0.", show_default="the last")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the model.", show_default="RUN/export/task-0t")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too.")] = False,
) -> None:
    """Write the model of a finished task as plain files, with a card that says how to use them.

    Example: kaizen-dist export runs/a --task 2 --onnx
    """
    from kaizen_dist.deploy.export import export as run_export

    print(run_export(run, task, out, onnx))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A folder made by `kaizen-dist export`.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name, most probable first.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name images: the most probable classes of each, of those the model has met.

    Example: kaizen-dist predict runs/a/export/task-04 photo.jpg folder/ --top 5
    """
    from kaizen_dist.deploy import predict as prediction
    from kaizen_dist.deploy.network import load_model

    found = prediction.images_at(images)
    answers = list(prediction.predict(load_model(model), found, top, batch))
    if as_json:
        print(json.dumps([answer.to_json() for answer in answers]))
    else:
        for answer in answers:
            if answer.problem is None:
                print(answer)
    prediction.raise_if_broken(answers)


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
