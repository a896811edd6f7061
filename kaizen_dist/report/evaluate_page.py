"""The page of an evaluation: classes, confusions, features on a plane, images right and wrong.

One HTML file that needs nothing but itself, and beside it PAGE-figures/confusion and
PAGE-figures/features, each as CSV and PNG.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kaizen_dist.common.console import one_line
from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.common.fonts import legible
from kaizen_dist.common.formatting import csv_text, fraction, percent, plural
from kaizen_dist.models.evaluate import Evaluation
from kaizen_dist.models.visualise import Example
from kaizen_dist.report.charts import looks
from kaizen_dist.report.drawing import inline, png
from kaizen_dist.report.evaluate_table import MOST_CLASSES, most_confused
from kaizen_dist.report.heatmap import Cell
from kaizen_dist.report.page import rendered
from kaizen_dist.report.palette import COLOURS, cell_style, colormap
from kaizen_dist.report.plots import Bar, BarChart

_SIDE = 96
"""Pixels of an example on the page, at most."""
_WIDTH, _HEIGHT = 1016, 480
"""Of the plane of features on the page, in px."""
PROBES = {"linear": "linear probe", "knn": "vote of the nearest neighbours"}


@dataclass(frozen=True)
class Shown:
    """An example as the page has it."""

    source: str
    """A data URI."""
    title: str
    note: str
    name: str


def write_evaluation_page(found: Evaluation, target: Path) -> Path:
    """Write the page and its figures; an existing page is replaced at once. In a folder it is
    named eval.html. Raises WriteError."""
    target = target / "eval.html" if target.is_dir() else target
    figures = target.parent / f"{target.stem}-figures"
    make_folder(figures)
    atomic_write(figures / "confusion.csv", csv_text(_confusion_rows(found)).encode())
    atomic_write(figures / "confusion.png", _confusion_png(found))
    atomic_write(figures / "features.csv", csv_text(_feature_rows(found)).encode())
    atomic_write(figures / "features.png", _features_png(found))
    atomic_write(target, render(found, figures.name).encode())
    return target


def render(found: Evaluation, folder: str) -> str:
    """The page as HTML; the figures lie in `folder` beside it."""
    visuals = found.visualisation
    where = "on its own stream" if found.own_stream else f"on {found.stream}"
    context = {
        "title": f"What is known after task {found.task + 1}",
        "name": found.run,
        "verdict": f"The {PROBES.get(found.probe, 'classifier')} names {percent(found.accuracy)} "
        f"of {found.images:,} images right, {where}.",
        "headline": [
            plural(len(found.tasks), "task"),
            plural(len(found.classes), "class", "classes"),
            f"calibration error {fraction(found.ece)}",
        ],
        "tasks": [
            (t + 1, percent(a), [fraction(of[t]) for of in found.drift.values()])
            for t, a in found.tasks.items()
        ],
        "earlier": [t + 1 for t in found.drift],
        "classes": _classes(found),
        "confusion": _confusion(found) if len(found.classes) <= MOST_CLASSES else [],
        "names": found.classes,
        "confused": most_confused(found),
        "plane": _plane(found),
        "looks": looks([f"task {task + 1}" for task in found.tasks]),
        "explained": percent(sum(visuals.explained), 0),
        "right": [_shown(example) for example in visuals.right],
        "wrong": [_shown(example) for example in visuals.wrong],
        "which": "some images" if found.ece is None else "the images it was surest of",
        "folder": folder,
    }
    return rendered("evaluate.html.j2", context)


def _classes(found: Evaluation) -> BarChart:
    bars = [
        Bar(name, "c0", f"left:0%;width:{100 * (share or 0):.2f}%", "", percent(share, 0))
        for name, share in zip(found.classes, found.per_class, strict=True)
    ]
    return BarChart("Right, by class", "per cent of a class's images", bars)


def _confusion(found: Evaluation) -> list[tuple[str, list[Cell]]]:
    """Counts, coloured by their share of the row."""
    names = found.classes
    return [
        (label, [_cell(label, answer, n, sum(row)) for answer, n in zip(names, row, strict=True)])
        for label, row in zip(names, found.confusion, strict=True)
    ]


def _cell(label: str, answer: str, count: int, total: int) -> Cell:
    style = cell_style(count / max(1, total))
    hint = f"{label} named {answer}: {count}"
    return Cell(str(count) if count else "·", hint, style, label == answer)


def _plane(found: Evaluation) -> tuple[str, str]:
    """Features on two axes, wide and narrow, each task in its own colour."""

    def draw(figure: Any) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        _draw_features(axes, found, 20)
        axes.axis("off")

    hints = {f"task-{task}": [f"task {task + 1}"] for task in found.tasks}
    title = "Features by task"
    description = f"{plural(len(found.visualisation.points), 'image')} on two principal axes."
    wide, narrow = (
        inline(draw, size, name, title, description, hints)
        for name, size in {"plane": (_WIDTH, _HEIGHT), "plane-narrow": (480, 400)}.items()
    )
    return wide, narrow


def _points(found: Evaluation, task: int) -> list[tuple[float, float]]:
    """Those of a task; of a small one beside large ones there may be none."""
    pairs = zip(found.visualisation.points, found.visualisation.tasks, strict=True)
    return [point for point, own in pairs if own == task]


def _shown(example: Example) -> Shown:
    with Image.open(io.BytesIO(example.image)) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    encoded = io.BytesIO()
    small.save(encoded, "PNG")
    sure = "" if example.confidence is None else f"{percent(example.confidence, 0)} sure"
    right = example.label == example.answer
    return Shown(
        source="data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode(),
        title=example.answer if right else f"{example.answer}, not {example.label}",
        note=sure,
        name=one_line(example.name),
    )


# ---- as files -------------------------------------------------------------------------------


def _confusion_rows(found: Evaluation) -> list[Sequence[object]]:
    rows = [[name, *row] for name, row in zip(found.classes, found.confusion, strict=True)]
    return [["label", *found.classes], *rows]


def _feature_rows(found: Evaluation) -> list[Sequence[object]]:
    points = zip(found.visualisation.tasks, found.visualisation.points, strict=True)
    return [["task", "first", "second"], *([t + 1, x, y] for t, (x, y) in points)]


def _confusion_png(found: Evaluation) -> bytes:
    def draw(axes: Any) -> None:
        shares = [[count / max(1, sum(row)) for count in row] for row in found.confusion]
        axes.imshow(shares, cmap=colormap(), vmin=0, vmax=1)
        if len(found.classes) <= MOST_CLASSES:
            names = [legible(name) for name in found.classes]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")

    return png("Confusion matrix", draw)


def _features_png(found: Evaluation) -> bytes:
    def draw(axes: Any) -> None:
        _draw_features(axes, found, 5)
        axes.set_xlabel(f"{percent(found.visualisation.explained[0], 0)} of the variance")
        axes.set_ylabel(f"{percent(found.visualisation.explained[1], 0)}")
        axes.legend(frameon=False, fontsize=8)

    return png("Features on their two principal axes", draw)


def _draw_features(axes: Any, found: Evaluation, area: float) -> None:
    for task in found.tasks:
        own = _points(found, task)
        x, y = [a for a, _ in own], [b for _, b in own]
        colour = COLOURS[task % len(COLOURS)]
        how = {"s": area, "color": colour, "linewidths": 0, "alpha": 0.62}
        axes.scatter(x, y, label=f"task {task + 1}", gid=f"task-{task}", **how)
    axes.set_aspect("equal", adjustable="datalim")
