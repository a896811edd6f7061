"""Numbers and findings in words: per cent, points, durations, and the one-sentence verdict.

In come fractions and runs, out go short English texts. A value that was not measured is a
dash, never a zero. The minus sign is U+2212, the space before a unit does not break.
"""

from collections.abc import Iterable
from itertools import pairwise

from kaizen_dist.evaluation import metrics
from kaizen_dist.report.runs import Run

SPACE = "\u202f"
DASH = "–"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def percent(value: float | None, digits: int = 1) -> str:
    """0.4831 -> "48.3 %"."""
    return DASH if value is None else f"{number(100 * value, digits)}{SPACE}%"


def points(value: float | None, digits: int = 1) -> str:
    """A difference of two accuracies: 0.12 -> "12.0"."""
    return DASH if value is None else number(100 * value, digits)


def fraction(value: float | None) -> str:
    """0.3131 -> "0.313"."""
    return DASH if value is None else number(value, 3)


def number(value: float, digits: int = 0) -> str:
    """Grouped in thousands; what rounds to zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """In the two largest units: "2 d 3 h", "3 h 12 min", "4 min 5 s", "7 s"."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    for (unit, size), (minor, small) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{SPACE}{unit}" + (f" {rest}{SPACE}{minor}" if rest else "")
    return f"{whole}{SPACE}s"


def plural(count: int, noun: str, several: str = "") -> str:
    """1 -> "1 task", 5 -> "5 tasks"."""
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def listing(items: Iterable[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def verdict(run: Run) -> str:
    """What came of a run, in one or two sentences for a reader who knows none of the terms."""
    results = run.results
    if not run.tasks_done:
        return "No task is finished yet."
    after = f"After {plural(run.tasks_done, 'task')}"
    if results.final_accuracy is None:
        knn = metrics.final_accuracy(results.knn)
        if knn is None:
            return f"{after} nothing has been measured."
        return (
            f"{after} the nearest neighbours of an image name it right {percent(knn, 0)} of the "
            "time, on average over the tasks seen so far; the run has no classifier."
        )
    average = ", on average over the tasks seen so far" if run.tasks_done > 1 else ""
    known = f"{after} the model names {percent(results.final_accuracy, 0)} of images right{average}"
    return f"{known}{_forgotten(results.forgetting)}. {_chance(run)}".rstrip()


def _forgotten(value: float | None) -> str:
    if value is None:
        return ""
    amount = points(abs(value), 0)
    unit = "point" if amount == "1" else "points"
    if amount == "0":
        return "; it has forgotten next to nothing"
    if value < 0:
        return f"; on earlier tasks it has gained {amount} {unit} over its former best"
    return f"; it has forgotten {amount} {unit}"


def _chance(run: Run) -> str:
    chance = chance_over_tasks(run)
    return f"Guessing would get {percent(chance[-1], 0)}." if chance else ""


def chance_over_tasks(run: Run) -> list[float]:
    """For every finished task: the accuracy of a guess among all classes seen by then."""
    classes: set[str] = set()
    levels = []
    for names in run.results.task_classes[: run.tasks_done]:
        classes.update(names)
        levels.append(1 / max(1, len(classes)))
    return levels
