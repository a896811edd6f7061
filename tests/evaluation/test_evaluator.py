"""Measuring over ranks: the same figures at every world size, and an unchanged model."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from kaizen_dist.config import validate
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.engine.base import digest
from kaizen_dist.engine.process import Process, start
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import decode_row
from kaizen_dist.views.tensor import centre_views

CONFIG = {
    "ssl": {"hidden": 16, "dim": 8, "predictor_hidden": 16},
    "model": {"backbone": "resnet10"},
    "classifier": {"hidden": 16},
    "distill": {"hidden": 16},
    "views": {"size": 8, "backend": "torch"},
    "eval": {"bank": 150, "batch_size": 50},
}


def measure(root: str):
    config, stream = validate(CONFIG, "the test"), Stream.open(root)
    with start(ParallelConfig(), threads=1) as process:
        learner = Learner(config, stream.num_classes, process)
        # Statistics that are not the initial ones, as after training.
        learner.backbone(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        before = digest(learner.state_dict().items())
        evaluator = Evaluator(config, stream, process, lambda *_: None)
        rows = evaluator.accuracies(learner, 1)
        probe = evaluator.probe(learner, 2)
        features = evaluator.features(learner, stream.split(0, "val"))
        assert learner.training
        assert digest(learner.state_dict().items()) == before, "evaluation never changes the model"
        return *rows, probe, features


def test_figures_do_not_depend_on_the_world_size(ranks, digits):
    ((classifier, knn, probe, features),) = ranks(measure, 1, str(digits.root))
    assert [a is None for a in classifier] == [False, False, True, True, True]
    assert [a is None for a in knn] == [False, False, True, True, True]
    assert knn[0] > 0.6, "even untrained features tell two digits apart"
    assert probe > 0.6
    for answer in ranks(measure, 4, str(digits.root)):
        assert answer[0] == classifier
        assert answer[1] == knn
        assert answer[2] == probe
        assert np.allclose(answer[3], features, atol=1e-5)


def test_the_classifier_answers_with_classes_seen_so_far_only(digits):
    config = validate(CONFIG, "the test")
    learner = Learner(config, digits.num_classes)
    learner.eval()
    split = digits.split(0, "val")
    images = centre_views([decode_row(split, row) for row in range(len(split))], config.views)
    logits = learner.logits(images)
    seen = digits.tasks[0].classes
    hidden = [c for c in range(10) if c not in seen]
    logits[:, hidden] = -math.inf
    by_hand = (logits.argmax(1).numpy() == split.labels).mean()
    evaluator = Evaluator(config, digits, Process(), lambda *_: None)
    assert evaluator.accuracies(learner, 0)[0][0] == pytest.approx(by_hand)


def test_tasks_that_share_classes_are_measured_before_they_come(tmp_path):
    stream = prepare("digits", tmp_path / "s", scenario="data", tasks=3, progress=False)
    config = validate(CONFIG, "the test")
    evaluator = Evaluator(config, stream, Process(), lambda *_: None)
    classifier, knn = evaluator.accuracies(Learner(config, stream.num_classes), 0)
    assert None not in classifier
    assert None not in knn


def measure_means(root: str):
    """Means after task 1 from its images and a quarter of task 0's; accuracies; the means."""
    with start(ParallelConfig(), threads=1) as process:
        config, stream = validate(CONFIG | {"eval": {"ncm": True}}, "the test"), Stream.open(root)
        learner = Learner(config, stream.num_classes, process)
        learner.backbone(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        evaluator = Evaluator(config, stream, process, lambda *_: None)
        old = stream.split(0, "train")
        kept = Split(old.folder, old.part, old.index[np.arange(0, len(old), 4)])
        evaluator.take_means(learner, [stream.split(1, "train"), kept])
        return evaluator.nearest_mean(learner, 1), learner.class_means.numpy()


@pytest.fixture(scope="module")
def by_means(digits):
    """What one rank measures."""
    return measure_means(str(digits.root))


def test_the_nearest_class_mean_is_scikit_learns(by_means, digits):
    row, means = by_means
    config = validate(CONFIG, "the test")
    learner = Learner(config, digits.num_classes)
    learner.backbone(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    evaluator = Evaluator(config, digits, Process(), lambda *_: None)
    places = {t: digits.split(t, "train") for t in (0, 1)}
    features = {t: normalize(evaluator.features(learner, s)) for t, s in places.items()}
    classes, centres = [], []
    for t, step in ((0, 4), (1, 1)):
        for c in digits.tasks[t].classes:
            own = features[t][::step][places[t].labels[::step] == c]
            classes.append(c)
            centres.append(own.mean(axis=0))
    one = KNeighborsClassifier(1, metric="cosine").fit(np.stack(centres), classes)
    for t in (0, 1):
        split = digits.split(t, "val")
        predicted = one.predict(evaluator.features(learner, split))
        assert row[t] == pytest.approx((predicted == split.labels).mean())
    assert (np.abs(means).sum(1) > 0).nonzero()[0].tolist() == sorted(classes)


@pytest.mark.slow
def test_nearest_class_means_do_not_depend_on_the_world_size(ranks, by_means, digits):
    row, means = by_means
    for theirs, moved in ranks(measure_means, 2, str(digits.root)):
        assert theirs == row
        assert np.allclose(moved, means, atol=1e-6)


def test_a_class_that_is_not_replayed_keeps_its_mean(digits):
    config = validate(CONFIG | {"eval": {"ncm": True}}, "the test")
    learner = Learner(config, digits.num_classes)
    evaluator = Evaluator(config, digits, Process(), lambda *_: None)
    evaluator.take_means(learner, [digits.split(0, "train")])
    before = learner.class_means.clone()
    with torch.no_grad():
        next(learner.backbone.parameters()).mul_(-1)
    evaluator.take_means(learner, [digits.split(1, "train")])
    old = digits.tasks[0].classes
    assert torch.equal(learner.class_means[old], before[old])
    evaluator.take_means(learner, [digits.split(1, "train"), digits.split(0, "train")])
    assert not torch.equal(learner.class_means[old], before[old]), "replayed, it is taken anew"
