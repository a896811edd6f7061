"""A finished task of a run, examined after the fact: on its own stream or on another one.

In come a run's folder and a stream, out goes an `Examination`: accuracy by task and by class,
what is confused with what, how far the confidence holds, and how the features have drifted
since earlier tasks. The model is read from RUN/models; the run is not touched.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation.cka import linear_cka
from kaizen_dist.evaluation.confusion import (
    calibration_error,
    confusion_matrix,
    per_class_accuracy,
)
from kaizen_dist.evaluation.evaluator import Evaluator, Progress, inference
from kaizen_dist.evaluation.knn import knn_predict
from kaizen_dist.evaluation.probe import fit_probe
from kaizen_dist.learner.learner import Learner
from kaizen_dist.models.export import finished_task, read_run
from kaizen_dist.models.visualise import (
    POINTS,
    Example,
    Portrait,
    chosen,
    evenly,
    principal_components,
)
from kaizen_dist.runs.checks import own_stream
from kaizen_dist.runs.results import Results
from kaizen_dist.runs.saved_models import PARTS, SavedModel, read_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.remote import is_url

ProbeName: TypeAlias = Literal["linear", "knn", "classifier"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)
Answers: TypeAlias = tuple[Tensor, Tensor | None]
"""Predicted labels [n] and, where there are probabilities, that of each [n]."""


@dataclass(frozen=True)
class Examination:
    """What a model knows of a stream; fractions."""

    run: str
    task: int
    """The last one it has learnt, from 0."""
    stream: str
    own_stream: bool
    """Whether it was trained on it; then only the tasks it has learnt are asked."""
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
    """Row = the label, column = the answer."""
    portrait: Portrait
    drift: dict[int, dict[int, float]]
    """Linear CKA of this model's features with those after an earlier task of the run, on the
    validation images of each of the stream's tasks: {after task: {on task: CKA}}."""

    def to_json(self) -> dict[str, Any]:
        """As plain data: all but the portrait."""
        return {name: value for name, value in asdict(self).items() if name != "portrait"}


def examine(
    run: Path,
    task: int | None,
    probe: ProbeName,
    place: str | Path | None = None,
    progress: Progress = lambda *_: None,
) -> Examination:
    """Examine the model after a finished task (None: the last) on a stream (None: the run's own).

    `linear` and `knn` learn from labelled training images of the tasks asked (at most
    `eval.bank` of them, as in the run), the `classifier` is the run's own.

    The run may be somebody else's: of the places that it names only a stream's folder is read,
    none is fetched from or written to. What is fetched goes to the default cache.

    Raises:
        UsageError: no such task, a probe that the run or the stream has nothing for, or a stream
            that only the run says to fetch.
        DataError: a run or stream that is missing or damaged.
    """
    config, results = read_run(run)
    task = finished_task(run, results, task)
    stream = _open(run, results, place)
    own = stream.fingerprint == results.stream.fingerprint
    learnt = list(range(task + 1) if own else range(len(stream)))
    saved = read_model(run, task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = _learner(config, saved).to(device)
    evaluator = Evaluator(config, stream, RankContext(device=device), progress)
    names = _names(saved, stream)
    asked = [t for t in learnt if (stream.split(t, "val").labels >= 0).any()]
    held_out = {t: _held_out(evaluator, learner, t, names) for t in asked}
    if not held_out:
        raise UsageError(f"{stream.root}: none of its tasks has a labelled validation image")
    answers = _answers(probe, evaluator, learner, saved, learnt, names, config)
    labels = torch.cat([labels for _, labels in held_out.values()])
    features = torch.cat([features for features, _ in held_out.values()])
    predicted, confidence = answers(features)
    right = predicted == labels
    ends = dict(
        zip(held_out, right.split([len(pair[1]) for pair in held_out.values()]), strict=True)
    )
    confusion = confusion_matrix(labels, predicted, len(names))
    met = torch.nonzero(confusion.sum(0) + confusion.sum(1)).flatten()
    return Examination(
        run=str(run),
        task=task,
        stream=str(stream.root),
        own_stream=own,
        probe=probe,
        images=len(labels),
        accuracy=float(right.double().mean()),
        ece=None if confidence is None else calibration_error(confidence, right),
        tasks={t: float(of.double().mean()) for t, of in ends.items()},
        classes=[names[i] for i in met.tolist()],
        per_class=per_class_accuracy(confusion[met][:, met]),
        confusion=confusion[met][:, met].tolist(),
        portrait=_portrait(stream, held_out, features, labels, predicted, confidence, names),
        drift=_drift(run, config, task, evaluator, {t: pair[0] for t, pair in held_out.items()}),
    )


def _open(run: Path, results: Results, place: str | Path | None) -> Stream:
    """The stream that is asked for, or the run's own if it lies in a folder."""
    if place is None and is_url(results.stream.path):
        raise UsageError(
            f"{run}: its stream lies at {results.stream.path}, from where nothing is fetched "
            "unasked; name that URL, or a folder, with --stream"
        )
    stream = Stream.open(own_stream(run) if place is None else place)
    stream.check_labels()
    return stream


def _portrait(
    stream: Stream,
    held_out: dict[int, tuple[Tensor, Tensor]],
    features: Tensor,
    labels: Tensor,
    predicted: Tensor,
    confidence: Tensor | None,
    names: list[str],
) -> Portrait:
    """The plane of all tasks' features, and the images of which the model was surest."""
    splits = {t: stream.split(t, "val") for t in held_out}
    places = [(t, row) for t in held_out for row in (splits[t].labels >= 0).nonzero()[0].tolist()]
    some = evenly(len(places), POINTS)
    points, explained = principal_components(features[some])
    true, answers = labels.tolist(), predicted.tolist()
    sure = [None] * len(places) if confidence is None else confidence.tolist()
    order = sorted(range(len(places)), key=lambda i: -(sure[i] or 0.0))

    def examples(right: bool) -> list[Example]:
        own = [i for i in order if (true[i] == answers[i]) is right]
        shown = [own[i] for i in chosen([true[i] for i in own])]
        return [
            Example(
                image=splits[places[i][0]].read(places[i][1]),
                label=names[true[i]],
                answer=names[answers[i]],
                confidence=sure[i],
            )
            for i in shown
        ]

    return Portrait(
        points=[(float(x), float(y)) for x, y in points.tolist()],
        tasks=[places[i][0] for i in some],
        explained=explained,
        right=examples(True),
        wrong=examples(False),
    )


def _learner(config: Config, saved: SavedModel) -> Learner:
    """A learner with the backbone and classifier of a saved model."""
    learner = Learner(config, len(saved.classes))
    try:
        missing, _ = learner.load_state_dict(saved.state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{saved.path} does not fit the run's configuration\n{error}") from None
    # An average of weights, where the run kept one, is what the file holds already.
    learner.begin_task(first=True)
    lost = [name for name in missing if name.startswith(PARTS)]
    if lost:
        raise DataError(f"{saved.path} lacks {', '.join(lost)}; restore it from a copy of the run")
    return learner


def _names(saved: SavedModel, stream: Stream) -> list[str]:
    """All classes there are: the model's in its order, then those of the stream it never met."""
    return list(dict.fromkeys([*saved.classes, *stream.classes]))


def _held_out(
    evaluator: Evaluator, learner: Learner, task: int, names: list[str]
) -> tuple[Tensor, Tensor]:
    """Features and labels (numbers in `names`) of a task's labelled validation images."""
    features, labels = evaluator.held_out(learner, task)
    known = labels >= 0
    return features[known], _renumbered(labels[known], evaluator.stream, names)


def _renumbered(labels: Tensor, stream: Stream, names: list[str]) -> Tensor:
    """Classes have numbers of their own in every stream; their names are what they share."""
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[name] for name in stream.classes], device=labels.device)[labels]


def _answers(
    probe: ProbeName,
    evaluator: Evaluator,
    learner: Learner,
    saved: SavedModel,
    tasks: list[int],
    names: list[str],
    config: Config,
) -> Callable[[Tensor], Answers]:
    """From features [n, d] to answers, by the probe that is asked for."""
    stream = evaluator.stream
    if probe == "classifier":
        return _by_classifier(learner, saved, stream)
    found = evaluator.bank(learner, tasks)
    if found is None:
        raise UsageError(f"--probe {probe}: {stream.root} has no labelled training image")
    bank, labels = found[0], _renumbered(found[1], stream, names)
    if probe == "linear":
        fitted = fit_probe(bank, labels)

        def by_probe(features: Tensor) -> Answers:
            confidence, best = fitted.logits(features).softmax(dim=1).max(dim=1)
            return fitted.classes[best], confidence

        return by_probe
    k, temperature = config.eval.knn_k, config.eval.knn_temperature
    return lambda features: (
        knn_predict(bank, labels, features, len(names), k, temperature),
        None,
    )


def _by_classifier(
    learner: Learner, saved: SavedModel, stream: Stream
) -> Callable[[Tensor], Answers]:
    """The run's own classifier, over the classes that it had met."""
    classifier = learner.eval_head
    if classifier is None:
        raise UsageError(
            "--probe classifier: the run has none (classifier.enabled=false); use linear or knn"
        )
    if not {saved.classes[c] for c in saved.seen} & set(stream.classes):
        raise UsageError(
            f"--probe classifier: it has met no class of {stream.root}; use linear or knn"
        )
    unseen = torch.ones(len(saved.classes), dtype=torch.bool)
    unseen[list(saved.seen)] = False

    @torch.no_grad()
    def answers(features: Tensor) -> Answers:
        logits = classifier(features).masked_fill(unseen.to(features.device), -torch.inf)
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        return predicted, confidence

    return answers


def _drift(
    run: Path, config: Config, task: int, evaluator: Evaluator, now: dict[int, Tensor]
) -> dict[int, dict[int, float]]:
    """How alike the features are to those after every earlier task."""
    drift: dict[int, dict[int, float]] = {}
    for earlier in range(task):
        learner = _learner(config, read_model(run, earlier)).to(evaluator.context.device)
        with inference(learner):
            drift[earlier] = {}
            for t, features in now.items():
                before, labels = evaluator.held_out(learner, t)
                drift[earlier][t] = linear_cka(before[labels >= 0], features)
    return drift
