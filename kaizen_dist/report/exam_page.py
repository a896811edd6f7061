"""An examination as a page: classes, confusions, features on a plane, images right and wrong.

In comes an `Evaluation`, out goes one HTML file that needs nothing but itself, and beside it
FIGURES/confusion and FIGURES/features, each as CSV and PNG.
"""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.common.fonts import legible
from kaizen_dist.common.formatting import fraction, percent, plural
from kaizen_dist.models.evaluate import Evaluation
from kaizen_dist.models.visualise import Example
from kaizen_dist.report import color
from kaizen_dist.report.exam import MOST_CLASSES, most_confused
from kaizen_dist.report.heatmap import Cell
from kaizen_dist.report.page import environment, ramp
from kaizen_dist.report.panels import COLOURS
from kaizen_dist.report.plots import COLOURS as PRINTED
from kaizen_dist.report.plots import drawn
from kaizen_dist.report.sweep_page import Bar, BarChart

_SIDE = 96
"""Pixels of an example on the page, at most."""
_WIDTH = 1000.0


@dataclass(frozen=True)
class Cloud:
    """The points of a task, as one path of dots."""

    name: str
    style: str
    path: str


@dataclass(frozen=True)
class Shown:
    """An example as the page has it."""

    source: str
    """A data URI."""
    title: str
    note: str


def write_exam_page(found: Evaluation, target: Path) -> Path:
    """Write the page and its figures; an existing page is replaced at once. In a folder it is
    named exam.html. Raises WriteError."""
    target = target / "exam.html" if target.is_dir() else target
    figures = target.parent / f"{target.stem}-figures"
    make_folder(figures)
    atomic_write(figures / "confusion.csv", _confusion_csv(found).encode())
    atomic_write(figures / "confusion.png", _confusion_png(found))
    atomic_write(figures / "features.csv", _features_csv(found).encode())
    atomic_write(figures / "features.png", _features_png(found))
    atomic_write(target, render(found, figures.name).encode())
    return target


def render(found: Evaluation, folder: str) -> str:
    """The page as HTML; the figures lie in `folder` beside it."""
    shown = found.visualisation
    where = "on its own stream" if found.own_stream else f"on {found.stream}"
    height, clouds = _clouds(found)
    context = {
        "title": f"What is known after task {found.task + 1}",
        "name": found.run,
        "verdict": f"The {_asked(found)} names {percent(found.accuracy)} of "
        f"{found.images:,} images rightly, {where}.",
        "headline": [
            f"{plural(len(found.tasks), 'task')} asked",
            plural(len(found.classes), "class", "classes"),
            f"calibration error {fraction(found.ece)}",
        ],
        "notices": [],
        "tasks": [
            (
                t + 1,
                percent(a),
                [fraction(of[t]) for of in found.drift.values()],
            )
            for t, a in found.tasks.items()
        ],
        "earlier": [t + 1 for t in found.drift],
        "classes": _classes(found),
        "confusion": _confusion(found) if len(found.classes) <= MOST_CLASSES else [],
        "names": found.classes,
        "confused": most_confused(found),
        "clouds": clouds,
        "height": height,
        "explained": percent(sum(shown.explained), 0),
        "right": [_shown(example) for example in shown.right],
        "wrong": [_shown(example) for example in shown.wrong],
        "which": "some images" if found.ece is None else "the images it was surest of",
        "folder": folder,
    }
    return environment().get_template("exam.html.j2").render(ramp=ramp(), **context)


def _asked(found: Evaluation) -> str:
    return {"linear": "linear probe", "knn": "nearest neighbours' vote"}.get(
        found.probe, "classifier"
    )


def _classes(found: Evaluation) -> BarChart:
    bars = [
        Bar(name, "c0", 0, 100 * (share or 0), 0, 0, percent(share, 0))
        for name, share in zip(found.classes, found.per_class, strict=True)
    ]
    return BarChart("Named rightly, by class", "per cent of a class's images", bars)


def _confusion(found: Evaluation) -> list[tuple[str, list[Cell]]]:
    """Counts, coloured by their share of the row."""
    rows = []
    for i, (name, counts) in enumerate(zip(found.classes, found.confusion, strict=True)):
        total = max(1, sum(counts))
        cells = [
            _cell(name, found.classes[j], count, count / total, i == j)
            for j, count in enumerate(counts)
        ]
        rows.append((name, cells))
    return rows


def _cell(label: str, answer: str, count: int, share: float, right: bool) -> Cell:
    light, dark = color.LIGHT.at(share), color.DARK.at(share)
    style = (
        f"--cell:{light};--text:{color.ink_on(light)};"
        f"--night-cell:{dark};--night-text:{color.ink_on(dark)}"
    )
    return Cell(str(count) if count else "·", f"{label} named {answer}: {count}", style, right)


def _clouds(found: Evaluation) -> tuple[float, list[Cloud]]:
    """The height of the plane, whose width is 1000, and every task's points on it."""
    x, y = zip(*found.visualisation.points, strict=True)
    left, top = min(x), max(y)
    scale = _WIDTH / max(max(x) - left, 1e-12)
    height = max(scale * (top - min(y)), 200.0)
    clouds = []
    for task in found.tasks:
        path = "".join(
            f"M{scale * (a - left):.1f} {scale * (top - b):.1f}h.01"
            for a, b in _points(found, task)
        )
        clouds.append(Cloud(f"task {task + 1}", f"c{task % COLOURS}", path))
    return round(height, 1), clouds


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
    )


# ---- as files -------------------------------------------------------------------------------


def _csv(rows: Iterable[Sequence[object]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def _confusion_csv(found: Evaluation) -> str:
    rows = [[name, *row] for name, row in zip(found.classes, found.confusion, strict=True)]
    return _csv([["label", *found.classes], *rows])


def _features_csv(found: Evaluation) -> str:
    points = zip(found.visualisation.tasks, found.visualisation.points, strict=True)
    return _csv([["task", "first", "second"], *([t + 1, x, y] for t, (x, y) in points)])


def _confusion_png(found: Evaluation) -> bytes:
    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        shares = [[count / max(1, sum(row)) for count in row] for row in found.confusion]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(found.classes) <= MOST_CLASSES:
            names = [legible(name) for name in found.classes]
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("what it was named")
        axes.set_ylabel("what it is")

    return drawn("What is named what", draw)


def _features_png(found: Evaluation) -> bytes:
    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        for task in found.tasks:
            own = _points(found, task)
            colour = PRINTED[task % len(PRINTED)]
            x, y = [a for a, _ in own], [b for _, b in own]
            axes.scatter(x, y, s=5, color=colour, label=f"task {task + 1}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(f"{percent(found.visualisation.explained[0], 0)} of the variance")
        axes.set_ylabel(f"{percent(found.visualisation.explained[1], 0)}")
        axes.legend(frameon=False, fontsize=8)

    return drawn("Features on their two principal axes", draw)
