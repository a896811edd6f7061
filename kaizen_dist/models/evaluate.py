"""Evaluation of a model after training, on its run's stream or on another one.

A run's folder and a stream give an `Evaluation`: accuracy by task and by class, confusion matrix,
calibration, and the drift of the features since earlier tasks. The model is read from RUN/models;
the run is not changed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation.analysis import (
    calibration_error,
    confusion_matrix,
    linear_cka,
    per_class_accuracy,
)
from kaizen_dist.evaluation.evaluator import Evaluator, Progress
from kaizen_dist.evaluation.knn import knn_predict
from kaizen_dist.evaluation.probe import fit_probe
from kaizen_dist.learner.learner import Learner
from kaizen_dist.models.export import finished_task
from kaizen_dist.models.visualise import Visualisation, visualise
from kaizen_dist.runs.checks import own_stream
from kaizen_dist.runs.results import Results
from kaizen_dist.runs.saved_models import PARTS, SavedModel, read_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.remote import is_url

ProbeName: TypeAlias = Literal["linear", "knn", "classifier"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)


@dataclass(frozen=True)
class Evaluation:
    """Of a model on a stream; fractions."""

    run: str
    task: int
    """The last one learnt, from 0."""
    stream: str
    own_stream: bool
    """Whether it was trained on it; then only the tasks learnt are evaluated."""
    probe: ProbeName
    images: int
    accuracy: float
    """Over all images."""
    ece: float | None
    """Expected calibration error; None for kNN, whose votes are no probabilities."""
    tasks: dict[int, float]
    """Accuracy by the stream's tasks."""
    classes: list[str]
    """Of the confusion matrix."""
    per_class: list[float | None]
    confusion: list[list[int]]
    """Row = the label, column = the prediction."""
    visualisation: Visualisation
    drift: dict[int, dict[int, float]]
    """Linear CKA of this model's features with those after an earlier task of the run, on the
    validation images of each of the stream's tasks: {after task: {on task: CKA}}."""

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the visualisation."""
        return {name: value for name, value in asdict(self).items() if name != "visualisation"}


def evaluate(
    run: Path,
    task: int | None,
    probe: ProbeName,
    place: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Evaluate the model after a finished task (None: the last) on a stream (None: the run's own).

    `linear` and `knn` are fitted to labelled training images of the tasks evaluated (at most
    `eval.bank` of them, as in the run), the `classifier` is the run's own.

    The run may come from somebody else: of the paths that it names only a stream's folder is read,
    nothing is fetched from or written to them. Downloads go to the default cache.

    Raises:
        UsageError: no such task, a probe for which the run or the stream lacks a classifier or
            labels, or a stream that only the run names to be fetched.
        DataError: a run or stream that is missing or damaged.
    """
    config, results, task = finished_task(run, task)
    stream = _open(run, results, place)
    own = stream.begins_with(results.stream.fingerprint, results.stream.tasks)
    saved = read_model(run, task)
    context = RankContext(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    learner = _learner(config, saved).to(context.device)
    evaluator = Evaluator(config, stream, context, progress)
    # All classes: the model's in its order, then those of the stream that it has never met.
    names = list(dict.fromkeys([*saved.classes, *stream.classes]))
    learnt = range(task + 1 if own else len(stream))
    splits = {t: split for t in learnt if ((split := stream.split(t, "val")).labels >= 0).any()}
    if not splits:
        raise UsageError(f"{stream.root}: none of its tasks has a labelled validation image")
    held_out = {t: _held_out(evaluator, learner, t, names) for t in splits}
    features, labels = (torch.cat(parts) for parts in zip(*held_out.values(), strict=True))
    predicted, confidence = _predict(probe, evaluator, learner, saved, learnt, names, features)
    right = predicted == labels
    by_task = right.split([len(of_task) for _, of_task in held_out.values()])
    confusion = confusion_matrix(labels, predicted, len(names))
    met = torch.nonzero(confusion.sum(0) + confusion.sum(1)).flatten()
    confusion = confusion[met][:, met]
    return Evaluation(
        run=str(run),
        task=task,
        stream=str(stream.root),
        own_stream=own,
        probe=probe,
        images=len(labels),
        accuracy=float(right.double().mean()),
        ece=None if confidence is None else calibration_error(confidence, right),
        tasks={t: float(of.double().mean()) for t, of in zip(splits, by_task, strict=True)},
        classes=[names[i] for i in met.tolist()],
        per_class=per_class_accuracy(confusion),
        confusion=confusion.tolist(),
        visualisation=visualise(splits, features, labels, predicted, confidence, names),
        drift=_drift(run, config, task, evaluator, {t: pair[0] for t, pair in held_out.items()}),
    )


def _open(run: Path, results: Results, place: str | Path | None) -> Stream:
    """The stream at `place`, or the run's own if it is a folder."""
    if place is None and is_url(results.stream.path):
        raise UsageError(
            f"{run}: its stream lies at {results.stream.path}, from where nothing is fetched "
            "unasked; name that URL, or a folder, with --stream"
        )
    stream = Stream.open(own_stream(run) if place is None else place)
    stream.check_labels()
    return stream


def _learner(config: Config, saved: SavedModel) -> Learner:
    """A learner with the backbone and classifier of a saved model."""
    learner = Learner(config, len(saved.classes))
    try:
        missing, _ = learner.load_state_dict(saved.state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{saved.path} does not fit the run's configuration\n{error}") from None

    learner.begin_task(first=True)
    lost = [name for name in missing if name.startswith(PARTS)]
    if lost:
        raise DataError(f"{saved.path} lacks {', '.join(lost)}; restore it from a copy of the run")
    return learner


def _held_out(
    evaluator: Evaluator, learner: Learner, task: int, names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Features and labels (numbers in `names`) of a task's labelled validation images."""
    features, labels = evaluator.held_out(learner, task)
    known = labels >= 0
    return features[known], _renumbered(labels[known], evaluator.stream, names)


def _renumbered(labels: Tensor, stream: Stream, names: Sequence[str]) -> Tensor:
    """Labels of a stream as positions of their classes' names in `names`."""
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[name] for name in stream.classes], device=labels.device)[labels]


def _predict(
    probe: ProbeName,
    evaluator: Evaluator,
    learner: Learner,
    saved: SavedModel,
    tasks: Sequence[int],
    names: Sequence[str],
    features: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Predicted labels [n] of features [n, d], and the probability of each where there are any."""
    stream, settings = evaluator.stream, evaluator.config.eval
    if probe == "classifier":
        return _classify(learner, saved, stream, features)
    found = evaluator.bank(learner, tasks)
    if found is None:
        raise UsageError(f"--probe {probe}: {stream.root} has no labelled training image")
    bank, labels = found[0], _renumbered(found[1], stream, names)
    if probe == "linear":
        fitted = fit_probe(bank, labels)
        confidence, best = fitted.logits(features).softmax(dim=1).max(dim=1)
        return fitted.classes[best], confidence
    k, temperature = settings.knn_k, settings.knn_temperature
    return knn_predict(bank, labels, features, len(names), k, temperature), None


@torch.no_grad()
def _classify(
    learner: Learner, saved: SavedModel, stream: Stream, features: Tensor
) -> tuple[Tensor, Tensor]:
    """`_predict` by the run's own classifier, over the classes that it has learnt."""
    if learner.eval_head is None:
        raise UsageError(
            "--probe classifier: the run has none (classifier.enabled=false); use linear or knn"
        )
    if not {saved.classes[c] for c in saved.seen} & set(stream.classes):
        raise UsageError(
            f"--probe classifier: it has learnt no class of {stream.root}; use linear or knn"
        )
    unseen = torch.ones(len(saved.classes), dtype=torch.bool, device=features.device)
    unseen[list(saved.seen)] = False
    logits = learner.eval_head(features).masked_fill(unseen, -torch.inf)
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    return predicted, confidence


def _drift(
    run: Path, config: Config, task: int, evaluator: Evaluator, now: dict[int, Tensor]
) -> dict[int, dict[int, float]]:
    """Similarity of the features of each task to those after every earlier task."""
    drift: dict[int, dict[int, float]] = {}
    for earlier in range(task):
        learner = _learner(config, read_model(run, earlier)).to(evaluator.context.device)
        drift[earlier] = {}
        for t, features in now.items():
            before, labels = evaluator.held_out(learner, t)
            drift[earlier][t] = linear_cka(before[labels >= 0], features)
    return drift
