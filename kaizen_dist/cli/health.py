"""Verbs about the health of machines: doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli.app import Procs, app
from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import UsageError


@app.command()
def doctor(
    slurm: Annotated[bool, typer.Option("--slurm", help="Look at the Slurm cluster.")] = False,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="With --slurm: run on so many of its nodes.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of these nodes.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="Of these nodes; a rank each.")] = 0,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Among the ranks of --procs, torchrun or srun.")
    ] = False,
    procs: Procs = 1,
    stream: Annotated[
        str | None, typer.Option(help="A stream's folder: measure the storage under it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are to be kept.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Is all fit to train? Each finding is ok, warn or fail, with its cure; exit 1 if one fails.

    Example: kaizen-dist doctor --procs 2 --stream streams/digits
    """
    from kaizen_dist.doctor.examine import examine, examine_ranks
    from kaizen_dist.doctor.nodes import Asked

    if nodes is not None and not slurm:
        raise UsageError("--nodes asks a cluster: give --slurm as well, or --procs on this machine")
    if procs > 1:
        raise typer.Exit(_launch(procs, stream, out, as_json))
    if distributed:
        report = examine_ranks(out, stream)
    else:
        asked = None if nodes is None else Asked(nodes, partition, gpus_per_node)
        report = examine(out, stream, slurm, asked)
    if report is None:
        return
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        PlainConsole().print(report.render())
    raise typer.Exit(report.exit_code)


def _launch(procs: int, stream: str | None, out: Path, as_json: bool) -> int:
    """Start the same as so many ranks."""
    from kaizen_dist.distributed.spawn import launch

    arguments = ["doctor", "--distributed", "--out", str(out)]
    arguments += ["--stream", stream] if stream else []
    return launch([*arguments, *(["--json"] if as_json else [])], procs)
