"""Verbs about many runs: sweep."""

from pathlib import Path
from typing import Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, Overrides, Procs, app


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="A sweep file, such as configs/sweeps/digits_terms.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep.")],
    overrides: Overrides = None,
    stream: Annotated[
        str | None, typer.Option(help=STREAM_PLACE, show_default="the file prepares one")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    procs: Procs = 1,
) -> None:
    """Run all that a file asks for: variants, grids, seeds; then tables and a page.

    The same command again goes on: finished runs are never repeated, failed ones tried again.
    Exit 1 if a run failed, after all others ran. Overrides are for all runs.

    Example: kaizen-dist sweep configs/sweeps/digits_replay.yaml --out sweeps/replay --jobs 2
    """
    from kaizen_dist.sweep.places import LocalPlace, visible_devices
    from kaizen_dist.sweep.report import write_page
    from kaizen_dist.sweep.runner import run_sweep
    from kaizen_dist.sweep.spec import read_sweep

    asked = read_sweep(file, overrides or ())
    place = LocalPlace(jobs, procs, visible_devices())
    failed = run_sweep(asked, stream, out, place, procs)
    print(write_page(out, asked, failed))
    raise typer.Exit(1 if failed else 0)
