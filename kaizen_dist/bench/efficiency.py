"""Scaling efficiency and the parts of a step: rows from measurements, a figure and a document.

Efficiency is the speed of a rank relative to that of the smallest count: in weak scaling the share
of a rank's speed that is left, in strong scaling the speed-up over the ideal one. It is computed
within every round, and then the median taken: a slowdown of a whole round says nothing about
scaling.

Columns of a row (one count under one mode): `name`, `mode`, `nodes`, `ranks`, `rounds`,
`images_per_second` (of the task, all ranks, nothing being saved) and `efficiency`, each with its
`_spread` (least and largest round), `cpu_ms_per_image`, `step_ms`, and `parts`: ms a step by PARTS,
which add up to `step_ms` but for `checkpoint`, which comes on top (missing: not measured).
"""

import io
from collections.abc import Sequence
from statistics import median
from typing import Any

from kaizen_dist.bench.result import BenchResult, Row, Sheet
from kaizen_dist.bench.step_timer import BACKWARD, COMMUNICATION, MOMENTUM, STUDENT, TEACHER

_GROUPS = {
    "data": ("data",),
    "forward": (STUDENT, MOMENTUM, TEACHER),
    "backward": (BACKWARD,),
    "communication": (COMMUNICATION,),
}
COLOURS = {
    "data": "#e69f00",
    "forward": "#0072b2",
    "backward": "#56b4e9",
    "communication": "#d55e00",
    "other": "#bbbbbb",
    "checkpoint": "#009e73",
}
"""Okabe and Ito's, which the colour-blind can tell apart."""
PARTS = tuple(COLOURS)
"""Forward: all networks and losses. Other: the optimizer, and the rest. Checkpoint: the stall of
one save a minute, spread over the steps of that minute."""
_MODES = {"weak": ("#0072b2", "o-"), "strong": ("#d55e00", "s--")}
_NOTE = """Weak: every node has the batch above; strong: all share it. Medians over rounds, in
parentheses the least and the largest. Efficiency: images a second and rank, relative to the
smallest count in the same round. Parts in ms a step; forward holds all networks and losses.
Checkpoint comes on top of the step: the stall of one save a minute, spread over its steps."""


def scaling_rows(
    labels: Sequence[Row],
    taken: Sequence[Sequence[Row]],
    stalls: Sequence[float | None],
) -> list[Row]:
    """The rows of one mode; a count without a measurement has none.

    Args:
        labels: name, mode, nodes and ranks of every count, ascending.
        taken: of every count, the rows of `bench train` of its first rounds.
        stalls: seconds of a save, where known.
    """
    measured = [case for case in zip(labels, taken, stalls, strict=True) if case[1]]
    rows = []
    for label, rounds, stall in measured:
        first, base = measured[0][:2]
        rates = [row["images_per_second"] for row in rounds]
        ideal = [row["images_per_second"] / first["ranks"] * label["ranks"] for row in base]
        ratios = [rate / best for rate, best in zip(rates, ideal, strict=False)]
        rows.append(
            label
            | {
                "rounds": len(rounds),
                "images_per_second": median(rates),
                "images_per_second_spread": (min(rates), max(rates)),
                "cpu_ms_per_image": median(row["cpu_ms_per_image"] for row in rounds),
                "efficiency": median(ratios),
                "efficiency_spread": (min(ratios), max(ratios)),
                "step_ms": median(row["step_ms"] for row in rounds),
                "parts": split(rounds, stall),
            }
        )
    return rows


def split(rounds: Sequence[Row], stall_seconds: float | None) -> dict[str, float]:
    """The parts of the median step in ms, scaled to add up to it, as medians by themselves do
    not; and the cost per step of one save a minute."""
    step_ms = median(row["step_ms"] for row in rounds)
    grouped = [grouped_parts(row) for row in rounds]
    parts = {name: median(parts[name] for parts in grouped) for name in grouped[0]}
    scale = step_ms / sum(parts.values())
    parts = {name: ms * scale for name, ms in parts.items()}
    return parts if stall_seconds is None else parts | {"checkpoint": stall_seconds / 60 * step_ms}


def grouped_parts(row: Row) -> dict[str, float]:
    """The parts of a row of `bench train`, put together as PARTS (without checkpoint)."""
    left = dict(row["parts_ms"])
    parts = {group: sum(left.pop(name) for name in names) for group, names in _GROUPS.items()}
    return parts | {"other": sum(left.values())}


def sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """The rows as text."""
    head = ("", "ranks", "images/s", "CPU ms/image", "efficiency", "ms a step", *PARTS)
    lines = []
    for row in rows:
        least, most = row["efficiency_spread"]
        rates = " to ".join(f"{rate:,.1f}" for rate in row["images_per_second_spread"])
        parts = row["parts"]
        lines.append(
            [
                row["name"],
                str(row["ranks"]),
                f"{row['images_per_second']:,.1f} ({rates})",
                f"{row['cpu_ms_per_image']:.2f}",
                f"{row['efficiency']:.1%} ({least:.1%} to {most:.1%})",
                f"{row['step_ms']:,.1f}",
                *(f"{parts[name]:,.2f}" if name in parts else "-" for name in PARTS),
            ]
        )
    return Sheet(title, head, lines)


def document(result: BenchResult) -> str:
    """The table as Markdown, with its legend and the failures."""
    (table,) = result.sheets
    lines = [f"# Scaling: {table.title}", "", table.markdown()]
    lines += ["![efficiency and parts of a step](scaling.png)", "", _NOTE]
    lines += [f"\nFailed: {f['name']}, see {f['log']}" for f in result.failures]
    return "\n".join(lines) + "\n"


def figure(result: BenchResult) -> bytes:
    """Efficiency against the count, and the parts of a step as stacked bars; a PNG file."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    drawing.suptitle(result.sheets[0].title, fontsize=11)
    left, right = drawing.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_efficiency(left, result.rows, result.settings["unit"])
    _draw_parts(right, result.rows)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    drawing.savefig(file, format="png")
    return file.getvalue()


def _draw_efficiency(axes: Any, rows: Sequence[Row], unit: str) -> None:
    for mode, (colour, style) in _MODES.items():
        own = [row for row in rows if row["mode"] == mode]
        counts = [row[f"{unit}s"] for row in own]
        middle = [100 * row["efficiency"] for row in own]
        spread = [
            [100 * abs(row["efficiency"] - row["efficiency_spread"][end]) for row in own]
            for end in (0, 1)
        ]
        axes.errorbar(counts, middle, spread, fmt=style, color=colour, capsize=3, label=mode)
    axes.axhline(100, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = sorted({row[f"{unit}s"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=f"{unit}s", ylabel="efficiency [%]")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower left")


def _draw_parts(axes: Any, rows: Sequence[Row]) -> None:
    places, floor = range(len(rows)), [0.0] * len(rows)
    for part, colour in COLOURS.items():
        heights = [row["parts"].get(part, 0.0) for row in rows]
        axes.bar(places, heights, 0.7, bottom=floor, color=colour, label=part)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    axes.set_xticks(places, [row["name"].replace(", ", "\n") for row in rows])
    axes.set_ylabel("ms a step")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
