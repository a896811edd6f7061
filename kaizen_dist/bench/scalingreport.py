"""Scaling as people read it: a table on the terminal, the same as Markdown, and a figure."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kaizen_dist.bench.efficiency import PARTS, Row
from kaizen_dist.common.errors import KaizenError
from kaizen_dist.common.files import atomic_write

_COLOURS = {
    "data": "#e69f00",
    "forward": "#0072b2",
    "backward": "#56b4e9",
    "communication": "#d55e00",
    "other": "#bbbbbb",
    "checkpoint": "#009e73",
}
"""Okabe and Ito's, which the colour-blind can tell apart."""
_MODES = {"weak": ("#0072b2", "o-"), "strong": ("#d55e00", "s--")}
_HEAD = ("", "ranks", "images/s", "CPU ms/image", "efficiency", "ms a step", *PARTS)


@dataclass(frozen=True)
class ScalingBench:
    rows: list[Row]
    machine: dict[str, Any]
    settings: dict[str, Any]
    failures: list[dict[str, str]]
    """What could not be measured: {"name", "log"}."""

    def to_json(self) -> dict[str, Any]:
        """As plain data: {"rows": [{"name", ...}], "machine", "settings", "failures"}."""
        return asdict(self)

    @property
    def title(self) -> str:
        """Of what, and how large."""
        told = self.settings
        return (
            f"{told['method']}, {told['backbone']}, {told['engine']}, {told['precision']}: "
            f"batch {told['batch_size']} + {told['replay_batch_size']} of one {told['unit']}"
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title)
        for number, name in enumerate(_HEAD):
            table.add_column(name, justify="right" if number else "left")
        for cells in self._cells():
            table.add_row(*cells)
        return table

    def markdown(self) -> str:
        """The table for a document, with what it means and what is missing."""
        lines = [f"# Scaling: {self.title}", "", _line(_HEAD)]
        lines.append("|---" + "|---:" * (len(_HEAD) - 1) + "|")
        lines += [_line(cells) for cells in self._cells()]
        lines += ["", "![efficiency and parts of a step](scaling.png)", "", _NOTE]
        lines += [f"\nFailed: {f['name']}, see {f['log']}" for f in self.failures]
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> None:
        """OUT/scaling.json, .md and, where there is something to draw, .png. Raises WriteError."""
        atomic_write(out / "scaling.json", json.dumps(self.to_json(), indent=1).encode())
        atomic_write(out / "scaling.md", self.markdown().encode())
        if self.rows:
            atomic_write(out / "scaling.png", figure(self))

    def complain(self) -> None:
        """Raises KaizenError if something could not be measured."""
        if self.failures:
            listed = "\n".join(f"  {f['name']}: {f['log']}" for f in self.failures)
            raise KaizenError(f"{len(self.failures)} measurement(s) failed; see\n{listed}")

    def _cells(self) -> Iterator[list[str]]:
        for row in self.rows:
            rates = " to ".join(f"{rate:,.1f}" for rate in row.images_per_second_spread)
            least, most = row.efficiency_spread
            yield [
                row.name,
                str(row.ranks),
                f"{row.images_per_second:,.1f} ({rates})",
                f"{row.cpu_ms_per_image:.2f}",
                f"{row.efficiency:.1%} ({least:.1%} to {most:.1%})",
                f"{row.step_ms:,.1f}",
                *(f"{row.parts[n]:,.2f}" if n in row.parts else "-" for n in PARTS),
            ]


_NOTE = """Weak: every node has the batch above; strong: all share it. Medians over rounds, in
parentheses the least and the largest. Efficiency: images a second and rank, relative to the
smallest count in the same round. Parts in ms a step; forward holds all networks and losses.
Checkpoint comes on top of the step: the stall of one save a minute, spread over its steps."""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def figure(bench: ScalingBench) -> bytes:
    """Efficiency against the count, and the parts of a step as stacked bars; a PNG file."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    drawing.suptitle(bench.title, fontsize=11)
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_efficiency(left, bench)
    _draw_parts(right, bench)
    file = io.BytesIO()
    drawing.savefig(file, format="png")
    return file.getvalue()


def _draw_efficiency(axes: Any, bench: ScalingBench) -> None:
    unit = bench.settings["unit"]
    for mode, (colour, style) in _MODES.items():
        rows = [row for row in bench.rows if row.mode == mode]
        counts = [_count(row, unit) for row in rows]
        middle = [100 * row.efficiency for row in rows]
        below = [100 * (row.efficiency - row.efficiency_spread[0]) for row in rows]
        above = [100 * (row.efficiency_spread[1] - row.efficiency) for row in rows]
        spread = [below, above]
        axes.errorbar(counts, middle, spread, fmt=style, color=colour, capsize=3, label=mode)
    axes.axhline(100, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = sorted({_count(row, unit) for row in bench.rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"{unit}s")
    axes.set_ylabel("efficiency [%]")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)


def _count(row: Row, unit: str) -> int:
    return row.nodes if unit == "node" else row.ranks


def _draw_parts(axes: Any, bench: ScalingBench) -> None:
    places = list(range(len(bench.rows)))
    floor = [0.0] * len(places)
    for part in PARTS:
        heights = [row.parts.get(part, 0.0) for row in bench.rows]
        axes.bar(places, heights, 0.7, bottom=floor, color=_COLOURS[part], label=part)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    axes.set_xticks(places, [row.name.replace(", ", "\n") for row in bench.rows])
    axes.set_ylabel("ms a step")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], names[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    axes.spines[["top", "right"]].set_visible(False)
