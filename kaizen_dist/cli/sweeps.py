"""Verbs about many runs: sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kaizen_dist.cli.app import STREAM_PLACE, Overrides, app, found
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import UsageError

if TYPE_CHECKING:
    from kaizen_dist.sweep.executors import Executor


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            callback=found,
            help="A sweep file, such as configs/sweeps/digits_terms.yaml: yours, or a shipped one.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep.")],
    overrides: Overrides = None,
    stream: Annotated[
        str | None, typer.Option(help=STREAM_PLACE, show_default="the file prepares one")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time.", show_default="1; on Slurm all")
    ] = None,
    procs: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks of a run on this machine.", show_default="1"),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(help="Run on a cluster, each run as a job: slurm/profiles/*.yaml."),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an earlier sweep; its runs are not repeated."),
    ] = None,
) -> None:
    """Run every variant, grid point and seed of a sweep file; then write tables and a page.

    The same command again continues: finished runs are never repeated, failed ones tried again.
    Exit 1 if a run failed, after all others ran. Overrides apply to all runs.

    Example: kaizen-dist sweep configs/sweeps/digits_replay.yaml --out sweeps/replay --jobs 2
    """
    from kaizen_dist.sweep.report import write_page
    from kaizen_dist.sweep.runner import run_sweep
    from kaizen_dist.sweep.spec import read_sweep

    asked = read_sweep(file, overrides or ())
    failed = run_sweep(asked, stream, out, _executor(jobs, procs, slurm), reuse or ())
    say(write_page(out, asked, failed), error=False)
    raise typer.Exit(1 if failed else 0)


def _executor(jobs: int | None, procs: int | None, slurm: Path | None) -> "Executor":
    """The executor that the flags ask for."""
    from kaizen_dist.distributed.spawn import refuse_ranks_in_a_rank
    from kaizen_dist.sweep.executors import LocalExecutor, visible_devices

    if slurm is None:
        refuse_ranks_in_a_rank(procs or 1)
        return LocalExecutor(jobs or 1, procs or 1, visible_devices())
    if procs is not None:
        raise UsageError("--procs is for this machine; a profile says ranks_per_node")
    from kaizen_dist.launch import resources
    from kaizen_dist.sweep.slurm import SlurmExecutor

    return SlurmExecutor(resources.read(slurm, {}), jobs)
