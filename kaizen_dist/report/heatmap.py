"""An accuracy matrix as a heat map: coloured cells, and margins that explain the metrics.

In comes a matrix of fractions, out go texts and colours for the template to draw as a table,
so that it can be read aloud, copied and scrolled. Its margins are where the metrics come
from: the mean of the "mean" column is CA, its last entry FA, the mean of the "lost" row F.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kaizen_dist.common.formatting import percent, points
from kaizen_dist.evaluation import metrics
from kaizen_dist.report.palette import cell_style


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map; `text` is None where nothing was measured."""

    text: str | None
    hint: str
    style: str = ""
    learnt: bool = False


@dataclass(frozen=True)
class HeatMap:
    """An accuracy matrix as a table of coloured cells, and its margins, in per cent.

    `hints` say what each column's task is; `style` names the colour of the run it belongs to.
    """

    title: str
    hints: list[str]
    rows: list[list[Cell]]
    means: list[str]
    lost: list[str]
    style: str = ""


def heat_map(
    title: str, matrix: metrics.Matrix, tasks: int, hints: Sequence[str] = (), style: str = ""
) -> HeatMap:
    """A cell for every task of the stream in every finished row of `matrix` (fractions)."""
    lost = [points(value, 0) for value in metrics.forgetting_per_task(matrix)]
    return HeatMap(
        title=title,
        hints=[*hints, *[""] * tasks][:tasks],
        rows=[
            [_cell(t, i, row[i] if i < len(row) else None) for i in range(tasks)]
            for t, row in enumerate(matrix)
        ],
        means=[points(mean, 0) for mean in metrics.accuracy_over_tasks(matrix)],
        lost=lost + [""] * (tasks - len(lost)) if lost else [],
        style=style,
    )


def _cell(t: int, i: int, value: float | None) -> Cell:
    where = f"After task {t + 1}, on task {i + 1}: "
    if value is None:
        return Cell(None, where + "not measured")
    return Cell(points(value, 0), where + percent(value), cell_style(value), t == i)
