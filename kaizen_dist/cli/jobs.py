"""Verbs about runs on a Slurm cluster, and how any runs are doing: submit, cancel, status, logs."""

import json
import sys
import time as clock
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli import options
from kaizen_dist.cli.app import STREAM_PLACE, ConfigFile, Overrides, app
from kaizen_dist.common.console import PlainConsole, say
from kaizen_dist.common.errors import UsageError

if TYPE_CHECKING:
    from kaizen_dist.launch.status import Overview


@app.command()
def submit(
    config: ConfigFile,
    stream: Annotated[str, typer.Option(help=STREAM_PLACE)],
    out: Annotated[Path, typer.Option(help="Folder of the run, on a disk that all nodes see.")],
    overrides: Overrides = None,
    profile: options.Profile = None,
    nodes: Annotated[int | None, typer.Option(min=1, show_default="1")] = None,
    gpus_per_node: options.GpusPerNode = None,
    ranks_per_node: options.RanksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    time: Annotated[
        str | None,
        typer.Option(help="Limit of a job; a run may take many.", show_default="24:00:00"),
    ] = None,
    mem: options.Memory = None,
    partition: options.Name = None,
    account: options.Name = None,
    qos: options.Name = None,
    constraint: options.Name = None,
    container: options.Container = None,
    signal_seconds: Annotated[
        int | None,
        typer.Option(
            min=10, help="Save and leave so long before the time limit.", show_default="120"
        ),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Attempts that may fail.", show_default="5")
    ] = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="One job a task, each after the one before.")
    ] = False,
    array: Annotated[
        list[str] | None,
        typer.Option(help="key=value1,value2: a run in OUT for every combination."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script and queue nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put a run on a Slurm cluster; it survives preemption, time limits and lost nodes.

    Example: kaizen-dist submit configs/cifar100_byol.yaml --stream streams/cifar100
    --out runs/a --profile slurm/profiles/example.yaml --nodes 2 --time 8:00:00
    """
    from kaizen_dist.config import load
    from kaizen_dist.launch import request, resources, submission
    from kaizen_dist.stream.manifest import Stream

    flags = {name: value for name, value in locals().items() if name in resources.FIELDS}
    wanted = resources.read(profile, flags)
    variants = request.variants(array or ())
    if chain and len(variants) > 1:
        raise UsageError("--chain and --array do not go together: chain the runs one by one")
    jobs = []
    for variant in variants:
        settings = load(config, [*(overrides or ()), *(f"{k}={v}" for k, v in variant.items())])
        folder = out / request.name_of(variant) if variant else out
        opened = Stream.open(stream, settings.stream)
        jobs.append((request.job_for(settings, opened, folder, wanted, chain), settings))
    if dry_run:
        say(submission.script(jobs[0][0]), error=False)
        return
    numbers = request.submit(jobs)
    if as_json:
        print(json.dumps({"jobs": numbers, "runs": [str(job.root) for job, _ in jobs]}))
        return
    first = quote(str(jobs[0][0].root))
    say(
        f"{len(numbers)} job(s) in the queue: {', '.join(numbers)}\n"
        f"  kaizen-dist status {quote(str(out))} --watch\n"
        f"  kaizen-dist logs {first} --follow\n"
        f"  kaizen-dist cancel {first}",
        error=False,
    )


@app.command()
def cancel(
    folder: Annotated[
        Path, typer.Argument(help="A submitted run, or a folder that holds such, like a sweep's.")
    ],
) -> None:
    """Take all jobs of a run, or of all runs in a folder, out of the queue; running ones save
    their step first.

    Example: kaizen-dist cancel runs/a
    """
    from kaizen_dist.launch.submission import cancel as take_out

    numbers = take_out(folder)
    said = ", ".join(numbers) or "none was there"
    say(f"{len(numbers)} job(s) taken out of the queue: {said}", error=False)


@app.command()
def status(
    folders: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.")],
    again: Annotated[bool, typer.Option("--watch", help="Redraw until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How runs are doing, here or on a cluster: state, place, speed, time left, checkpoint.

    Example: kaizen-dist status runs/ --watch
    """
    from kaizen_dist.launch.status import overview
    from kaizen_dist.launch.status_table import board, watch

    def look() -> "Overview":
        return overview(folders, clock.time())

    if as_json:
        print(json.dumps(look().to_json()))
    elif again:
        watch(look, PlainConsole())
    else:
        PlainConsole().print(board(look()))


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(help="Folder of a submitted run.")],
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(min=1, help="One of its jobs.", show_default="all; with --follow the last"),
    ] = None,
) -> None:
    """What the ranks of a submitted run said, job after job.

    Example: kaizen-dist logs runs/a --follow
    """
    from kaizen_dist.launch.logs import chosen, follow, show

    if following:
        follow(run, attempt, sys.stdout.buffer)
    else:
        show(chosen(run, attempt), sys.stdout.buffer)
