"""The four metrics of a few runs as a table, for the terminal and for Markdown.

Fractions with three decimals, as the paper prints them; a dash where a metric was not measured.
"""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from kaizen_dist.common import formatting
from kaizen_dist.common.console import one_line
from kaizen_dist.common.formatting import fraction, markdown_text
from kaizen_dist.evaluation.metrics import FOUR
from kaizen_dist.runs.reader import Run


def summary_table(runs: Sequence[Run]) -> Table:
    """FA, CA, F and FT of every run, for a rich console."""
    table = Table(caption="FA final, CA continual accuracy\nF forgetting, FT forward transfer")
    table.add_column("run", overflow="fold")
    table.add_column("method")
    table.add_column("tasks", justify="right")
    for metric in FOUR:
        table.add_column(metric.short, justify="right", no_wrap=True)
    for run in runs:
        name, method, *figures = _cells(run)
        # Text, not str: the name of a folder is no markup.
        table.add_row(Text(name), Text(method), *figures)
    return table


def markdown_table(runs: Sequence[Run]) -> str:
    """The same as GitHub-flavoured Markdown, ending in a newline."""
    header = ["run", "method", "tasks", *(metric.short for metric in FOUR)]
    rows = [[markdown_text(cell) for cell in _cells(run)] for run in runs]
    return formatting.markdown_table(header, rows, words=2)


def _cells(run: Run) -> list[str]:
    results = run.results
    total = results.stream.tasks
    done = str(total) if results.finished else f"{run.tasks_done} of {total}"
    figures = [fraction(metric.of(results)) for metric in FOUR]
    return [run.name, one_line(results.method), done, *figures]
