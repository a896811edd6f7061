"""The one-sentence verdict on a run, for a reader who knows none of the terms."""

from kaizen_dist.common.formatting import percent, plural, points
from kaizen_dist.evaluation import metrics
from kaizen_dist.runs.reader import Run


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
