"""The evaluation of a model as tables for the terminal."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from kaizen_dist.common.console import one_line
from kaizen_dist.common.formatting import fraction, percent
from kaizen_dist.models.evaluate import Evaluation

MOST_CLASSES = 20
"""Of more classes the confusion matrix does not fit a terminal; --json has it."""
MOST_CONFUSED = 10


def evaluation_tables(found: Evaluation) -> Iterator[Table | Text]:
    """The figures, then tasks, classes and what is confused most."""
    yield Text(
        f"{one_line(found.run)} after task {found.task + 1}, {found.probe} on "
        f"{one_line(found.stream)}: accuracy {percent(found.accuracy)} of "
        f"{found.images:,} images, calibration error {fraction(found.ece)}"
    )
    yield _tasks(found)
    if len(found.classes) <= MOST_CLASSES:
        yield _confusion(found)
    else:
        yield _confused_most(found)


def _tasks(found: Evaluation) -> Table:
    """Accuracy on each task, and how its features have drifted since earlier ones."""
    table = Table(caption="CKA: likeness to the features after an earlier task (1 = the same)")
    table.add_column("on task", justify="right")
    table.add_column("accuracy", justify="right")
    for earlier in found.drift:
        table.add_column(f"CKA after {earlier + 1}", justify="right")
    for task, accuracy in found.tasks.items():
        likeness = [fraction(of[task]) for of in found.drift.values()]
        table.add_row(str(task + 1), percent(accuracy), *likeness)
    return table


def _confusion(found: Evaluation) -> Table:
    table = Table(caption="rows: true class; columns: predicted class")
    table.add_column("class")
    table.add_column("right", justify="right")
    for name in found.classes:
        table.add_column(Text(one_line(name)), justify="right")
    for name, right, row in zip(found.classes, found.per_class, found.confusion, strict=True):
        cells = [str(count) if count else "·" for count in row]
        table.add_row(Text(one_line(name)), percent(right, 0), *cells)
    return table


def most_confused(found: Evaluation) -> list[tuple[int, str, str]]:
    """The largest cells off the diagonal: (images, what they are, what they were named)."""
    pairs = [
        (count, found.classes[i], found.classes[j])
        for i, row in enumerate(found.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, reverse=True)[:MOST_CONFUSED]


def _confused_most(found: Evaluation) -> Table:
    table = Table(caption=f"the {MOST_CONFUSED} confused most")
    for name in ("images", "of", "named"):
        table.add_column(name)
    for count, label, answer in most_confused(found):
        table.add_row(str(count), Text(one_line(label)), Text(one_line(answer)))
    return table
