"""The report: one HTML file that needs nothing but itself.

In come run folders, out goes report.html: what came of one run, or of several side by side.
This module puts the page together; `facts` and `compare` have its numbers, `panels` its
charts, `figures` their geometry, the templates its looks. All texts of a run (names, classes,
settings) are untrusted and escaped by the templates.
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
from kaizen_dist.report import color, compare, panels
from kaizen_dist.report.heatmap import HeatMap, heat_map
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
    context = _one(runs[0]) if len(runs) == 1 else _several(runs)
    name = "one.html.j2" if len(runs) == 1 else "several.html.j2"
    return environment().get_template(name).render(ramp=ramp(), **context)


def environment() -> Environment:
    """The templates; whatever they are given is escaped, control characters too."""
    return Environment(
        finalize=_shown,
        loader=PackageLoader("kaizen_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    # Markup is a string, and escaped already.
    return printable(value) if type(value) is str else value


def _one(run: Run) -> dict[str, Any]:
    results = run.results
    styled = panels.styled([run], [run.name])
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
    styled = panels.styled(runs, names)
    loss, terms = panels.losses(styled)
    sources = {facts.source(run.results) for run in runs}
    return {
        "title": f"{len(runs)} runs on {sources.pop() if len(sources) == 1 else 'several streams'}",
        "verdict": compare.verdict(runs, names),
        "headline": facts.headline(runs[0])[:4] if compare.comparable(runs) else [],
        "notices": facts.notices(runs, names),
        "metrics": compare.metrics_of(runs),
        "runs": styled,
        "compared": compare.compared(runs),
        "accuracies": panels.accuracies_of(styled),
        "maps": [_maps(s.run, s.name, s.style)[0] for s in styled],
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
    ]
    measured = [(t, m) for t, m in matrices if m and metrics.final_accuracy(m) is not None]
    tasks = [", ".join(classes) for classes in results.task_classes]
    return [
        heat_map(name or title, matrix, results.stream.tasks, tasks, style)
        for title, matrix in measured or matrices[:1]
        if matrix is not None
    ]


def ramp() -> dict[str, str]:
    """The key of the heat maps' colours, from 0 to 100 %, for light and dark pages."""
    stops = [i / 10 for i in range(11)]
    return {
        "light": ", ".join(color.LIGHT.at(v) for v in stops),
        "dark": ", ".join(color.DARK.at(v) for v in stops),
    }
