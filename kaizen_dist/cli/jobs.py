"""Verbs for submitted runs, and for the state of any runs: submit, cancel, status, logs."""

import json
import sys
import time as clock
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli import options
from kaizen_dist.cli.app import STREAM_PLACE, ConfigFile, Overrides, Until, app
from kaizen_dist.common.console import PlainConsole, say
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.formatting import duration

if TYPE_CHECKING:
    from kaizen_dist.launch.status import Overview


@app.command()
def submit(
    config: ConfigFile,
    stream: Annotated[str, typer.Option(help=STREAM_PLACE)],
    out: Annotated[Path, typer.Option(help="Folder of the run, on a disk that all nodes see.")],
    overrides: Overrides = None,
    profile: options.Profile = None,
    nodes: options.Nodes = None,
    gpus_per_node: options.GpusPerNode = None,
    ranks_per_node: options.RanksPerNode = None,
    cpus_per_task: options.CpusPerTask = None,
    time: options.Time = None,
    mem: options.Memory = None,
    partition: options.Name = None,
    account: options.Name = None,
    qos: options.Name = None,
    constraint: options.Name = None,
    container: options.Container = None,
    signal_seconds: options.SignalSeconds = None,
    retries: options.Retries = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="One job a task, each after the one before.")
    ] = False,
    until: Until = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Learn what the stream gets later, too, by a job each time."),
    ] = False,
    poll: options.Poll = 600,
    follow_partition: options.FollowPartition = None,
    array: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
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

    if array:
        raise UsageError(
            "--array: submit takes one run; write the combinations into a sweep file, such as "
            "`grid: {train.seed: [0, 1]}`, for `kaizen-dist sweep FILE --out DIR --slurm PROFILE`"
        )
    flags = {name: value for name, value in locals().items() if name in resources.FIELDS}
    asked, settings = resources.read(profile, flags), load(config, overrides or ())
    opened, wait = Stream.open(stream, settings.stream), poll if follow else None
    job = request.job_for(settings, opened, out, asked, chain, until, wait)
    if dry_run:
        say(submission.script(job, submission.attempt_options(job)), error=False)
        return
    numbers, watcher = request.submit(job, settings)
    said = {"jobs": numbers, "follows": watcher, "runs": [str(job.root)]}
    say(json.dumps(said) if as_json else _submitted(numbers, watcher, poll, out), error=False)


def _submitted(numbers: list[str], watcher: str | None, poll: int, out: Path) -> str:
    """What `submit` says: what is in the queue, and the commands for it."""
    run, every = quote(str(out)), duration(poll)
    lines = [f"{len(numbers)} job(s) in the queue: {', '.join(numbers) or 'nothing to learn yet'}"]
    lines += [f"job {watcher} looks for new tasks of the stream every {every}"] if watcher else []
    lines += [f"  kaizen-dist status {run} --watch", f"  kaizen-dist logs {run} --follow"]
    return "\n".join([*lines, f"  kaizen-dist cancel {run}"])


@app.command()
def cancel(
    folder: Annotated[
        Path, typer.Argument(help="A submitted run, or a folder of them, like a sweep's.")
    ],
) -> None:
    """Cancel all jobs of a run, or of all runs in a folder; running ones save their step first, and
    streams are followed no longer.

    Example: kaizen-dist cancel runs/a
    """
    from kaizen_dist.launch import submission

    numbers = submission.cancel(folder)
    said = ", ".join(numbers) or "none was there"
    say(f"{len(numbers)} job(s) taken out of the queue: {said}", error=False)


@app.command()
def status(
    folders: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.")],
    again: Annotated[bool, typer.Option("--watch", help="Redraw until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """State of runs, here or on a cluster: progress, speed, time left, newest checkpoint.

    Example: kaizen-dist status runs/ --watch
    """
    from kaizen_dist.launch.status import overview
    from kaizen_dist.launch.status_table import status_table, watch

    def look() -> "Overview":
        return overview(folders, clock.time())

    if as_json:
        print(json.dumps(look().to_json()))
    elif again:
        watch(look, PlainConsole())
    else:
        PlainConsole().print(status_table(look()))


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
    """Output of the ranks of a submitted run, job after job.

    Example: kaizen-dist logs runs/a --follow
    """
    from kaizen_dist.launch.logs import chosen, follow, show

    if following:
        follow(run, attempt, sys.stdout.buffer)
    else:
        show(chosen(run, attempt), sys.stdout.buffer)
