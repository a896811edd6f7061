"""From a sweep's folder to its page: which runs go together, and how the others ended."""

from collections.abc import Mapping
from pathlib import Path

from kaizen_dist.common.formatting import DASH, percent
from kaizen_dist.report.groups import Group
from kaizen_dist.report.sweep_page import RunRow, write_sweep_report
from kaizen_dist.runs.reader import load_run
from kaizen_dist.sweep.folder import Outcome, SweepFolder
from kaizen_dist.sweep.spec import Sweep, SweepRun


def write_page(out: Path, sweep: Sweep, failed: Mapping[str, Outcome]) -> Path:
    """Write OUT/report.html and OUT/figures/; returns the page.

    Raises:
        DataError: if a run's files are broken.
        WriteError: if the folder cannot be written.
    """
    folder = SweepFolder(out, sweep)
    groups = [
        Group(
            name, runs[0].varied, tuple(load_run(folder.run(r)) for r in runs if folder.finished(r))
        )
        for name, runs in sweep.variants.items()
    ]
    groups = [Group(g.name or "run", g.varied, g.runs) for g in groups]
    rows = [_row(folder, run, failed.get(run.name)) for run in sweep.runs]
    return write_sweep_report(out, sweep.title, groups, rows)


def _row(folder: SweepFolder, run: SweepRun, outcome: Outcome | None) -> RunRow:
    if outcome is not None:
        return RunRow(run.name, "failed", f"exit {outcome.exit_code}: {outcome.error}")
    results = folder.results(run)
    if results is None or not results.finished:
        return RunRow(run.name, "unfinished", DASH)
    return RunRow(run.name, "finished", percent(results.final_accuracy))
