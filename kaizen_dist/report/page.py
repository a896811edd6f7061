"""The report: one HTML file that needs nothing but itself, about one run or several side by side.

`facts` and `compare` have its numbers, `panels` its charts, the templates its looks. All texts
of a run (names, classes, settings) are untrusted and escaped.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kaizen_dist.common.console import printable
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.common.formatting import listing
from kaizen_dist.evaluation import metrics
from kaizen_dist.report import compare, panels
from kaizen_dist.report.charts import looks, svg
from kaizen_dist.report.heatmap import HeatMap, heat_map
from kaizen_dist.report.palette import DARK, LIGHT
from kaizen_dist.report.verdict import verdict
from kaizen_dist.runs import facts
from kaizen_dist.runs.reader import Run, load_run
from kaizen_dist.runs.results import Row

WIDE_MATRIX = 8
"""From so many tasks on a heat map takes the whole width of the page."""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side, and return where it is.

    `out` is a file or an existing folder; by default it is RUN/report.html for one run and
    ./report.html for several. An existing file is replaced at once, never half. Raises
    DataError (see `load_run`), UsageError for no run or one named twice, and WriteError.
    """
    if not runs:
        raise UsageError("name at least one run's folder")
    twice = [str(p) for p, n in Counter(p.resolve() for p in runs).items() if n > 1]
    if twice:
        raise UsageError(f"named twice: {', '.join(twice)}; name every run once")
    page = render([load_run(path) for path in runs])
    if out is None:
        # A folder under that name may be a link that leads out of the run: it is refused.
        target = (runs[0] if len(runs) == 1 else Path()) / "report.html"
    else:
        target = out / "report.html" if out.is_dir() else out
    make_folder(target.parent)
    atomic_write(target, page.encode())
    return target


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    if len(runs) == 1:
        return rendered("one.html.j2", _one(runs[0]))
    return rendered("several.html.j2", _several(runs))


def rendered(template: str, context: dict[str, Any]) -> str:
    """A page in the frame of all pages; every text is escaped, control characters too."""
    environment = Environment(
        finalize=_shown,
        loader=PackageLoader("kaizen_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"light": LIGHT, "dark": DARK, "svg": svg, "notices": []}
    return environment.get_template(template).render(**context)


def _shown(value: Any) -> Any:
    # Markup is a string, and escaped already.
    return printable(value) if type(value) is str else value


def _one(run: Run) -> dict[str, Any]:
    results = run.results
    styled = [*zip([run], looks([run.name]), strict=True)]
    loss, terms = panels.losses(styled)
    first, *others = _maps(run)
    return {
        "title": f"{facts.method(results)} on {facts.source(results)}",
        "name": run.name,
        "verdict": verdict(run),
        "headline": facts.headline(run),
        "notices": facts.notices([run], [run.name]),
        "metrics": facts.four_metrics(results),
        "main_map": first,
        "wide": results.stream.tasks > WIDE_MATRIX,
        "maps": others,
        "gap": facts.gap(results),
        "accuracy": panels.accuracy_over_tasks(run),
        "loss": loss,
        "terms": terms,
        "off": listing(panels.terms_off(styled)),
        "machinery": panels.machinery(styled),
        "tasks": facts.task_rows(run),
        "settings": facts.key_settings(run),
        "machine": facts.machine(run),
        "config": run.config_text,
    }


def _several(runs: Sequence[Run]) -> dict[str, Any]:
    names = compare.names(runs)
    styled = [*zip(runs, looks(names), strict=True)]
    loss, terms = panels.losses(styled)
    sources = {facts.source(run.results) for run in runs}
    return {
        "title": f"{len(runs)} runs on {sources.pop() if len(sources) == 1 else 'several streams'}",
        "verdict": compare.verdict(runs, names),
        "headline": facts.headline(runs[0])[:4] if compare.comparable(runs) else [],
        "notices": facts.notices(runs, names),
        "metrics": compare.metrics_of(runs),
        "runs": styled,
        "looks": [look for _, look in styled],
        "compared": compare.compared(runs),
        "accuracies": panels.accuracies_of(styled),
        "maps": [_maps(run, look.name, look.style)[0] for run, look in styled],
        "most_tasks": max(run.results.stream.tasks for run in runs),
        "loss": loss,
        "terms": terms,
        "off": listing(panels.terms_off(styled)),
        "machinery": panels.machinery(styled),
        "differences": compare.differences(runs),
    }


def _maps(run: Run, name: str = "", style: str = "") -> list[HeatMap]:
    """The classifier's matrix first, or kNN's where there is no classifier; then the others."""
    results = run.results
    matrices: list[tuple[str, list[Row] | None]] = [
        ("Classifier", results.accuracy),
        ("kNN on the features", results.knn),
        ("Nearest class mean", results.ncm),
        ("The same, fitted on all past images", results.oracle),
    ]
    measured = [(t, m) for t, m in matrices if m and metrics.final_accuracy(m) is not None]
    tasks = [", ".join(classes) for classes in results.task_classes]
    return [
        heat_map(name or title, matrix, results.stream.tasks, tasks, style)
        for title, matrix in measured or matrices[:1]
        if matrix is not None
    ]
