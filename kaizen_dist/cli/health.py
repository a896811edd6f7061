"""Verbs about the health of machines: doctor."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kaizen_dist.cli.app import Procs, app


@app.command()
def doctor(
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="Among ranks: of --procs N, torchrun or srun."),
    ] = False,
    procs: Procs = 1,
    stream: Annotated[
        str | None, typer.Option(help="A stream: measure the storage under it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are to be kept.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Is all fit to train? Each finding is ok, warn or fail, with its cure; exit 1 if one fails.

    Example: kaizen-dist doctor --distributed --procs 2 --stream streams/digits
    """
    from kaizen_dist.doctor.examination import examine_here, examine_ranks
    from kaizen_dist.doctor.report import Report, print_report

    if procs > 1 and "RANK" not in os.environ:
        from kaizen_dist.engine.local import launch

        arguments = ["doctor", "--distributed", "--out", str(out)]
        arguments += ["--stream", stream] if stream else []
        raise typer.Exit(launch([*arguments, *(["--json"] if as_json else [])], procs))
    report: Report | None
    if distributed:
        report = examine_ranks(out, stream)
    else:
        report = Report(examine_here(out, stream, local_ranks=1, ranks=1))
    if report is None:
        return
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report, Console(highlight=False))
    raise typer.Exit(report.exit_code)
