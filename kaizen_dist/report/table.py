"""The four metrics of a few runs as a table, for the terminal and for Markdown.

In come runs, out go tables of fractions with three decimals, as the paper prints them; a
dash where a metric was not measured.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from kaizen_dist.common.console import one_line
from kaizen_dist.common.formatting import fraction
from kaizen_dist.runs.reader import Run

METRICS = ("FA", "CA", "F", "FT")


def summary_table(runs: Sequence[Run]) -> Table:
    """FA, CA, F and FT of every run, for a rich console."""
    table = Table(caption="FA final, CA continual accuracy\nF forgetting, FT forward transfer")
    table.add_column("run", overflow="fold")
    table.add_column("method")
    table.add_column("tasks", justify="right")
    for name in METRICS:
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        name, method, *figures = _cells(run)
        # Text, not str: the name of a folder is no markup.
        table.add_row(Text(name), Text(method), *figures)
    return table


def markdown_table(runs: Sequence[Run]) -> str:
    """The same as GitHub-flavoured Markdown, ending in a newline."""
    header = ["run", "method", "tasks", *METRICS]
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    rows += [[plain(cell) for cell in _cells(run)] for run in runs]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(run: Run) -> list[str]:
    results = run.results
    total = results.stream.tasks
    figures = (
        results.final_accuracy,
        results.continual_accuracy,
        results.forgetting,
        results.forward_transfer,
    )
    done = str(total) if results.finished else f"{run.tasks_done} of {total}"
    return [run.name, one_line(results.method), done, *map(fraction, figures)]


def plain(text: str) -> str:
    """Text that means nothing to Markdown: no cell, line, link or tag begins in it."""
    special: dict[str, str | int | None] = {c: f"\\{c}" for c in "\\`*_[]<>|&#~"}
    return one_line(" ".join(text.split()).translate(str.maketrans(special)))
