"""Measuring over ranks: the same figures at every world size, and an unchanged model."""

import math

import numpy as np
import pytest
import torch

from kaizen_dist.config import validate
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.engine.base import digest
from kaizen_dist.evaluation.analysis import calibration_error
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.views.bad_samples import decode_row
from kaizen_dist.views.eval_view import EvalView

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
    with start(ParallelConfig(), threads=1) as context:
        learner = Learner(config, stream.num_classes, context)
        # Statistics that are not the initial ones, as after training.
        learner.backbone(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        before = digest(learner.state_dict().items())
        evaluator = Evaluator(config, stream, context, lambda *_: None)
        rows = evaluator.accuracies(learner, 1)
        probe = evaluator.probe(learner, 2)
        features = evaluator.features(learner, stream.split(0, "val"))
        assert learner.training
        assert digest(learner.state_dict().items()) == before, "evaluation never changes the model"
        return *rows, probe, features


def test_figures_do_not_depend_on_the_world_size(ranks, digits):
    ((classifier, knn, error, probe, features),) = ranks(measure, 1, str(digits.root))
    assert [a is None for a in classifier] == [False, False, True, True, True]
    assert [a is None for a in knn] == [False, False, True, True, True]
    assert knn[0] > 0.6, "even untrained features tell two digits apart"
    assert probe > 0.6
    for answer in ranks(measure, 4, str(digits.root)):
        assert answer[0] == classifier
        assert answer[1] == knn
        assert answer[2] == pytest.approx(error, rel=1e-6)
        assert answer[3] == probe
        assert np.allclose(answer[4], features, atol=1e-5)


def test_the_classifier_answers_with_classes_seen_so_far_only(digits):
    config = validate(CONFIG, "the test")
    learner = Learner(config, digits.num_classes)
    learner.eval()
    split = digits.split(0, "val")
    views = config.views
    shown = EvalView.of_size(views.size, views.mean, views.std)
    images = shown.of([decode_row(split, row) for row in range(len(split))])
    logits = learner.logits(images)
    seen = digits.tasks[0].classes
    hidden = [c for c in range(10) if c not in seen]
    logits[:, hidden] = -math.inf
    confidence, predicted = logits.double().softmax(1).max(1)
    right = predicted == torch.from_numpy(split.labels)
    evaluator = Evaluator(config, digits, RankContext(), lambda *_: None)
    classifier, _, error = evaluator.accuracies(learner, 0)
    assert classifier[0] == pytest.approx(right.double().mean().item())
    # In batches of 50: the sums of the bins add up.
    assert error == pytest.approx(calibration_error(confidence, right), rel=1e-5)


def test_tasks_that_share_classes_are_measured_before_they_come(tmp_path):
    stream = prepare("digits", tmp_path / "s", scenario="data", tasks=3, progress=False)
    config = validate(CONFIG, "the test")
    evaluator = Evaluator(config, stream, RankContext(), lambda *_: None)
    classifier, knn, _ = evaluator.accuracies(Learner(config, stream.num_classes), 0)
    assert None not in classifier
    assert None not in knn
