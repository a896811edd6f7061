"""Verbs that train: train, resume, demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, ConfigFile, Overrides, Procs, Until, app, found
from kaizen_dist.common.console import PlainConsole

if TYPE_CHECKING:
    from kaizen_dist.config import Config

Follow = Annotated[
    bool, typer.Option("--follow", help="Wait for further tasks of the stream, until it is ended.")
]
Poll = Annotated[
    float, typer.Option(min=0.1, help="Seconds between two looks at the stream, with --follow.")
]


@app.command()
def train(
    config: ConfigFile,
    stream: Annotated[str, typer.Option(help=STREAM_PLACE)],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    overrides: Overrides = None,
    procs: Procs = 1,
    until: Until = None,
    follow: Follow = False,
    poll: Poll = 60.0,
    summary: Annotated[bool, typer.Option(help="Print the metrics at the end.")] = True,
) -> None:
    """Train task after task: on one rank, with --procs N, or under torchrun or srun.

    The same command again continues from the last checkpoint, and with tasks that the stream has
    got since.

    Example: kaizen-dist train configs/digits.yaml --stream streams/digits --out runs/a
    train.epochs=20 train.seed=1
    """
    from kaizen_dist.config import load

    arguments = ["train", str(config), "--stream", stream, "--out", str(out), *(overrides or ())]
    arguments += [] if until is None else ["--until", str(until)]
    arguments += ["--follow", "--poll", str(poll)] if follow else []
    wait = poll if follow else None
    settings = load(config, overrides or ())
    _train(settings, stream, out, procs, arguments, summary, until=until, follow=wait)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    overrides: Overrides = None,
    stream: Annotated[
        str | None, typer.Option(help="New place of its stream.", show_default="its old place")
    ] = None,
    procs: Procs = 1,
    allow: Annotated[bool, typer.Option("--allow", help="Let overrides change results.")] = False,
    follow: Follow = False,
    poll: Poll = 60.0,
    summary: Annotated[bool, typer.Option(help="Print the metrics at the end.")] = True,
) -> None:
    """Continue a run from its folder alone, on any number of ranks that fits; a finished one with
    the tasks that its stream has got since.

    Example: kaizen-dist resume runs/a checkpoint.every_steps=50 --procs 2
    """
    from kaizen_dist.runs.checks import own_config, own_stream

    settings = own_config(run, overrides or (), allow)
    place = stream or own_stream(run)
    arguments = ["resume", str(run), "--stream", place, *(overrides or ())]
    arguments += ["--allow"] if allow else []
    arguments += ["--follow", "--poll", str(poll)] if follow else []
    _train(settings, place, run, procs, arguments, summary, allow, follow=poll if follow else None)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for stream and run.")] = Path("demo"),
    config: Annotated[
        Path, typer.Option(callback=found, help="A configuration for digits.")
    ] = Path("configs/digits.yaml"),
    procs: Annotated[int, typer.Option(min=1, help="Ranks.")] = 2,
) -> None:
    """Prepare, train on two processes and report, on embedded images.

    Example: kaizen-dist demo --out /tmp/demo
    """
    from kaizen_dist.cli.demo import run_demo

    raise typer.Exit(run_demo(out, config, procs))


def _train(
    settings: "Config",
    stream: str,
    out: Path,
    procs: int,
    arguments: list[str],
    summary: bool,
    allow_changes: bool = False,
    until: int | None = None,
    follow: float | None = None,
) -> None:
    """Train in this process, or start the same command `procs` times."""
    from kaizen_dist.common.io_watchdog import report_stalls
    from kaizen_dist.runs import checks as run
    from kaizen_dist.stream.manifest import Stream

    report_stalls(settings.views.stall_seconds)
    opened = Stream.open(stream, settings.stream)
    if procs > 1:
        from kaizen_dist.distributed.spawn import launch, refuse_ranks_in_a_rank

        refuse_ranks_in_a_rank(procs)
        run.check(settings, opened, procs)
        run.check_folder(out, settings, opened, allow_changes)
        arguments = [*arguments, *([] if summary else ["--no-summary"])]
        raise typer.Exit(launch(arguments, procs))

    from kaizen_dist.distributed.context import start
    from kaizen_dist.report.table import summary_table
    from kaizen_dist.runs.reader import load_run
    from kaizen_dist.training.run import train as train_all

    with start(settings.parallel, settings.train.threads) as context:
        train_all(settings, opened, out, context, allow_changes, until, follow)
        if context.main and summary:
            PlainConsole().print(summary_table([load_run(out)]))
