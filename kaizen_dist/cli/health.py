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
    slurm: Annotated[bool, typer.Option("--slurm", help="Check the Slurm cluster.")] = False,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="With --slurm: number of its nodes to check.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition of these nodes.")] = None,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="GPUs of each of these nodes; one rank per GPU.")
    ] = 0,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Among the ranks of --procs, torchrun or srun.")
    ] = False,
    procs: Procs = 1,
    stream: Annotated[
        str | None, typer.Option(help="A stream's folder: measure the storage under it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which runs will be kept.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Is all fit to train? Each finding is ok, warn or fail, with its cure; exit 1 if one fails.

    Example: kaizen-dist doctor --procs 2 --stream streams/digits
    """
    from kaizen_dist.doctor.checks import examine, examine_ranks

    if nodes is not None and not slurm:
        raise UsageError("--nodes asks a cluster: give --slurm as well, or --procs on this machine")
    if procs > 1:
        from kaizen_dist.distributed.spawn import launch

        arguments = ["doctor", "--distributed", "--out", str(out)]
        arguments += ["--stream", stream] if stream else []
        raise typer.Exit(launch([*arguments, *(["--json"] if as_json else [])], procs))
    if distributed:
        report = examine_ranks(out, stream)
    else:
        asked = None
        if nodes is not None:
            from kaizen_dist.doctor.cluster import NodesRequest

            asked = NodesRequest(nodes, partition, gpus_per_node)
        report = examine(out, stream, slurm, asked)
    if report is None:
        return
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        PlainConsole().print(report.render())
    raise typer.Exit(report.exit_code)
