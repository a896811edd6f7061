"""The model card of an export: what it is, what it can do, and how to use it, in Markdown.

A model, the run's configuration and its results come in, the text of README.md goes out. A
figure that was not measured says so; names from outside are escaped; no path of the machine
that trained it is told.
"""

from collections.abc import Sequence
from pathlib import PurePath

from kaizen_dist.common.formatting import (
    fraction,
    listing,
    markdown_table,
    markdown_text,
    plural,
)
from kaizen_dist.config import Config, flatten
from kaizen_dist.evaluation.metrics import METRICS
from kaizen_dist.models.description import FILE, Description
from kaizen_dist.models.network import DeployedModel
from kaizen_dist.models.onnx import FILE as ONNX
from kaizen_dist.models.snippet import python_snippet
from kaizen_dist.runs.facts import KEY_SETTINGS, METHODS, setting
from kaizen_dist.runs.results import Results

NAMES_SHOWN = 20
"""Classes of a task that the card lists by name; model.json holds them all."""
UNMEASURED = "not measured"
SHOWN = METRICS[:5]
"""Metrics of the card: the four, and kNN."""


def model_card(model: DeployedModel, config: Config, results: Results) -> str:
    """The card of the model as it was after its task."""
    about = model.description
    sections = [
        _title(about, config),
        _use(model),
        _stream(about, results),
        _quality(about, results),
        _purpose(about, config),
        _training(config, results),
        _files(about),
    ]
    return "\n\n".join(sections) + "\n"


def _title(about: Description, config: Config) -> str:
    method = METHODS.get(config.method, config.method)
    head = "without a classifier"
    if about.network.has_classifier:
        head = f"with a classifier over {plural(len(about.seen), 'class', 'classes')}"
    return (
        f"# {about.network.backbone} after task {about.task + 1} of {about.tasks}\n\n"
        f"A {about.network.backbone} ({about.network.features} features from images of "
        f"{about.view.size} x {about.view.size} pixels) {head}, learnt task after task: "
        f"self-supervised with {method}, and from the labels there were. {_retention(config)} "
        "Made with kaizen_dist, after *Kaizen* "
        "([arXiv 2303.17235](https://arxiv.org/abs/2303.17235))."
    )


def _retention(config: Config) -> str:
    means = []
    if config.distill.features or config.distill.classifier:
        means.append("distillation from itself as it was before each task")
    if config.replay.fraction > 0:
        means.append(f"replay of {100 * config.replay.fraction:g} % of the past")
    return f"It was held to what it knew by {listing(means) or 'nothing'}."


def _use(model: DeployedModel) -> str:
    command = (
        "With kaizen_dist, FOLDER being this one:\n\n    kaizen-dist predict FOLDER IMAGE ..."
        if model.classifier is not None
        else "It has no classifier and gives features only."
    )
    return (
        f"## Use\n\n{command}\n\n"
        "Without, in this folder, after `pip install torch torchvision safetensors`:\n\n"
        f"```python\n{python_snippet(model)}```{_onnx_use(model.description)}"
    )


def _onnx_use(about: Description) -> str:
    if ONNX not in about.files:
        return ""
    return (
        f"\n\n`{ONNX}` takes `images`, float32 [batch, 3, {about.view.size}, {about.view.size}], "
        "made as `pixels` above, and gives "
        + ("`features`." if about.network.hidden is None else "`probabilities` and `features`.")
    )


def _stream(about: Description, results: Results) -> str:
    stream = results.stream
    rows = [
        (
            task + 1,
            "yes" if task <= about.task else "no",
            _names(names),
            f"{stream.train_counts[task]:,}",
            f"{stream.val_counts[task]:,}",
        )
        for task, names in enumerate(results.task_classes)
    ]
    header = ("task", "learnt", "classes", "training images", "validation images")
    return (
        f"## What it has learnt\n\nFrom {markdown_text(_public(stream.source))}, "
        f"{stream.scenario}-incremental, in {plural(stream.tasks, 'task')}. The order of "
        f"the classifier's outputs is that of `classes` in {FILE}; only those in `seen` are "
        f"answers.\n\n{_table(header, rows)}"
    )


def _public(source: str) -> str:
    """A source without the folder it lay in, which tells of the machine and not of the model."""
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        return f"{kind}:{rest.partition(':')[0]}"
    return f"{kind}:{PurePath(rest).name}" if rest else kind


def _quality(about: Description, results: Results) -> str:
    done = about.task + 1
    parts = ("accuracy", "knn", "probe_before", "probe_random")
    then = results.model_copy(update={name: getattr(results, name)[:done] for name in parts})
    then.update_metrics()
    summary = [
        (f"{metric.short}, {metric.name.lower()}", _figure(metric.of(then))) for metric in SHOWN
    ]
    by_task = [
        (i + 1, _figure(then.accuracy[-1][i]), _figure(then.knn[-1][i])) for i in range(done)
    ]
    meanings = "\n".join(f"- {metric.short}: {metric.meaning}" for metric in SHOWN)
    return (
        "## How well it does\n\nOn held-out validation images, over all classes seen so far, "
        "without being told the task; fractions, measured right after task "
        f"{done}.\n\n{_table(('', 'value'), summary)}\n\n{meanings}\n\n"
        f"{_table(('task', 'classifier', 'nearest neighbours'), by_task)}"
    )


def _purpose(about: Description, config: Config) -> str:
    later = about.tasks - about.task - 1
    unknown = (
        f"- {plural(later, 'task')} of the stream came later: their classes, where they "
        "are new, it cannot name.\n"
        if later
        else ""
    )
    forgotten = "- Of earlier tasks it has forgotten a part: see the figures of each.\n"
    return (
        "## Intended use\n\nNaming images of the kind it was trained on, and features for "
        "them (nearest neighbours, linear probes). For research into continual learning.\n\n"
        "## Limits\n\n"
        f"{unknown}"
        "- Every image gets one of the known names, whatever it shows; there is no "
        "“none of these”.\n"
        "- Probabilities are a softmax and have not been calibrated.\n"
        f"{forgotten if about.task else ''}"
        f"- Images are scaled to {config.views.size} pixels: smaller detail is lost.\n"
        "- Nothing was tested beyond the validation images: not other sources, not fairness "
        "between groups, not attacks. Not for decisions about people."
    )


def _training(config: Config, results: Results) -> str:
    flat = flatten(config.dump())
    rows = [("method", METHODS.get(config.method, config.method))]
    rows += [(f"`{key}`", setting(flat[key])) for key in KEY_SETTINGS]
    rows.append(("ranks", str(results.world_size)))
    return f"## How it was trained\n\n{_table(('setting', 'value'), rows)}"


def _files(about: Description) -> str:
    rows = [(f"`{name}`", f"sha256 `{digest}`") for name, digest in about.files.items()]
    rows += [(f"`source.{name}`", f"`{value}`") for name, value in about.source.items() if value]
    return f"## Files and origin\n\n{_table(('what', 'digest'), rows)}\n\nNo file is a pickle."


def _figure(value: float | None) -> str:
    return UNMEASURED if value is None else fraction(value)


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(markdown_text, names[:NAMES_SHOWN]))
    rest = len(names) - NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return markdown_table(header, rows).rstrip()
