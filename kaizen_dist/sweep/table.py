"""The tables of a sweep: a row a run, and mean and standard deviation over the seeds.

    OUT/sweep.csv, sweep.parquet     a row a run, finished or not
    OUT/summary.csv, summary.md      a row a variant, over its finished runs

They are made from the runs' own results and rewritten whole, so a run is in them once. The
standard deviation is that of a sample (n - 1); of a single seed there is none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kaizen_dist.common.files import atomic_file, atomic_write
from kaizen_dist.common.formatting import DASH, csv_text, fraction, markdown_table, markdown_text
from kaizen_dist.evaluation.metrics import METRICS, Spread, spread
from kaizen_dist.runs.results import Results
from kaizen_dist.sweep.folder import Outcome, SweepFolder
from kaizen_dist.sweep.spec import SweepRun, text

CSV = "sweep.csv"
PARQUET = "sweep.parquet"
SUMMARY = "summary.csv"
MARKDOWN = "summary.md"

MEASURED = (*(metric.key for metric in METRICS), "images_per_second", "wall_seconds")


def measures(results: Results) -> dict[str, float | None]:
    """Metrics, speed and time of a run by column, as far as it got."""
    return {metric.key: metric.of(results) for metric in METRICS} | {
        "images_per_second": results.images_per_second,
        "wall_seconds": results.wall_seconds,
    }


def write_tables(folder: SweepFolder, failed: Mapping[str, Outcome]) -> None:
    """Rewrite all tables of a sweep.

    Raises:
        WriteError: if the folder cannot be written.
    """
    rows = [_row(folder, run, failed.get(run.name)) for run in folder.sweep.runs]
    atomic_write(folder.root / CSV, _csv(rows).encode())
    if find_spec("pyarrow") is not None:
        _write_parquet(folder, rows)
    summary = summarise(folder)
    flat: list[dict[str, Any]] = [
        {key: _plain(row.varied.get(key)) for key in folder.sweep.keys}
        | {"runs": row.runs, "finished": row.finished}
        | row.columns()
        for row in summary
    ]
    atomic_write(folder.root / SUMMARY, _csv(flat).encode())
    atomic_write(folder.root / MARKDOWN, markdown(folder.sweep.keys, summary).encode())


@dataclass(frozen=True)
class VariantRow:
    """A variant over its seeds."""

    name: str
    varied: dict[str, Any]
    runs: int
    finished: int
    spreads: dict[str, Spread | None]
    """By the columns of MEASURED."""

    def columns(self) -> dict[str, float | None]:
        """`COLUMN_mean` and `COLUMN_std` of every quantity."""
        flat: dict[str, float | None] = {}
        for column, found in self.spreads.items():
            flat[f"{column}_mean"] = found.mean if found else None
            flat[f"{column}_std"] = found.deviation if found else None
        return flat


def summarise(folder: SweepFolder) -> list[VariantRow]:
    """Every variant over its finished runs, in the order of the sweep."""
    rows = []
    for name, runs in folder.sweep.variants.items():
        all_results = [folder.results(run) for run in runs]
        figures = [measures(r) for r in all_results if r is not None and r.finished]
        spreads = {column: spread([f[column] for f in figures]) for column in MEASURED}
        rows.append(VariantRow(name, runs[0].varied, len(runs), len(figures), spreads))
    return rows


def markdown(keys: Sequence[str], rows: Sequence[VariantRow]) -> str:
    """Mean ± standard deviation of what was measured, as GitHub-flavoured Markdown."""
    shown = [metric for metric in METRICS if any(row.spreads[metric.key] for row in rows)]
    header = [*map(markdown_text, keys), "seeds", *(metric.short for metric in shown)]
    cells = [
        [
            *(markdown_text(text(row.varied[key])) if key in row.varied else "" for key in keys),
            row.finished,
            *(_figure(row.spreads[metric.key]) for metric in shown),
        ]
        for row in rows
    ]
    return markdown_table(header, cells, words=len(keys))


def _figure(found: Spread | None) -> str:
    if found is None:
        return DASH
    if found.deviation is None:
        return fraction(found.mean)
    return f"{fraction(found.mean)} ± {fraction(found.deviation)}"


def _row(folder: SweepFolder, run: SweepRun, outcome: Outcome | None) -> dict[str, Any]:
    """A run as a row of sweep.csv."""
    results = folder.results(run)
    status = "finished" if results and results.finished else "failed" if outcome else "unfinished"
    varied = {key: run.varied.get(key) for key in folder.sweep.keys}
    nothing = dict.fromkeys(MEASURED)
    return {
        "run": run.name,
        **{k: _plain(v) for k, v in varied.items()},
        "seed": run.seed,
        "status": status,
        "exit_code": outcome.exit_code if outcome else 0 if status == "finished" else None,
        "error": outcome.error if outcome else None,
        "tasks_done": len(results.accuracy) if results else 0,
        "tasks": results.stream.tasks if results else None,
        **(measures(results) if results else nothing),
        "world_size": results.world_size if results else None,
        "stream_fingerprint": results.stream.fingerprint if results else None,
        "config_sha256": run.config.sha256,
        "state_sha256": results.state_sha256 if results else None,
        "accuracy": json.dumps(results.accuracy) if results else None,
    }


def _plain(value: Any) -> float | str | None:
    """A varied value as a cell: a number, or words."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return text(value)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """With a header; what is not known is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return csv_text([columns, *([row.get(column) for column in columns] for row in rows)])


def _write_parquet(folder: SweepFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    # A key that holds numbers in one run and words in another is a column of words.
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    for column, values in columns.items():
        kinds = {type(v) for v in values if v is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            columns[column] = [None if v is None else text(v) for v in values]
    with atomic_file(folder.root / PARQUET) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
