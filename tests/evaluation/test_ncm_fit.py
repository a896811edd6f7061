"""Class means over tasks and ranks: joined, carried over the drift, the same at every size."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import normalize
from test_evaluator import CONFIG

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import validate
from kaizen_dist.config.schema import ParallelConfig
from kaizen_dist.distributed.context import RankContext, start
from kaizen_dist.evaluation import ncm_fit
from kaizen_dist.evaluation.evaluator import Evaluator, SplitRows, inference
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.shards import Split


def learner_of(stream: Stream, context: RankContext, **sections: dict) -> Learner:
    config = validate(CONFIG | {"eval": {"head": "ncm", "shrinkage": None}} | sections, "the test")
    learner = Learner(config, stream.num_classes, context)
    # Statistics that are not the initial ones, as after training.
    learner.backbone(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return learner


def drifted(learner: Learner) -> None:
    """As another task would: the teacher stays, the student moves on."""
    learner.begin_task(first=False)
    with torch.no_grad():
        for parameter in learner.backbone.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.mul_(1 + 0.3 * noise)


def two_tasks(root: str):
    """What is known after task 0, a drift, and task 1 with some of task 0 replayed; accuracies."""
    with start(ParallelConfig(), threads=1) as context:
        stream = Stream.open(root)
        learner = learner_of(stream, context)
        evaluator = Evaluator(learner.config, stream, context, lambda *_: None)
        old = stream.split(0, "train")
        ncm_fit.update(evaluator, learner, old, [])
        drifted(learner)
        kept = Split(old.folder, old.part, old.index[np.arange(0, len(old), 20)])
        ncm_fit.update(evaluator, learner, stream.split(1, "train"), [kept])
        known = learner.class_means
        assert known is not None
        row = evaluator.accuracies(learner, 1)[0]
        return row, known.means.numpy(), known.weight.numpy()


@pytest.fixture(scope="module")
def alone(digits):
    return two_tasks(str(digits.root))


def test_they_do_not_depend_on_the_world_size(ranks, alone, digits):
    row, means, weight = alone
    for theirs in ranks(two_tasks, 2, str(digits.root)):
        assert theirs[0] == row
        assert np.allclose(theirs[1], means, atol=1e-5)
        assert np.allclose(theirs[2], weight, atol=1e-3 * np.abs(weight).max())


def test_a_task_gives_the_means_of_its_classes(digits):
    learner = learner_of(digits, RankContext())
    evaluator = Evaluator(learner.config, digits, RankContext(), lambda *_: None)
    split = digits.split(0, "train")
    ncm_fit.update(evaluator, learner, split, [])
    features = normalize(evaluator.features(learner, split))
    known = learner.class_means
    for c in range(digits.num_classes):
        own = features[split.labels == c]
        assert known.counts[c] == len(own)
        if len(own):
            assert np.allclose(known.means[c], own.mean(axis=0), atol=1e-6)
    assert not known.means[known.counts == 0].any()


def test_past_means_follow_the_drift(alone, digits):
    """Nearer to where their class's images lie now than means that stay; not asked of a teacher
    that is not there."""
    stayed = learner_of(digits, RankContext())
    evaluator = Evaluator(stayed.config, digits, RankContext(), lambda *_: None)
    ncm_fit.update(evaluator, stayed, digits.split(0, "train"), [])
    old = stayed.class_means.means.clone()
    drifted(stayed)
    fresh = normalize(evaluator.features(stayed, digits.split(0, "train")))
    labels = digits.split(0, "train").labels
    _, carried, _ = alone
    for c in digits.tasks[0].classes:
        now = fresh[labels == c].mean(axis=0)
        assert np.linalg.norm(carried[c] - now) < 0.7 * np.linalg.norm(old[c].numpy() - now)
    stayed.teacher = None
    ncm_fit.update(evaluator, stayed, digits.split(1, "train"), [])
    assert torch.equal(
        stayed.class_means.means[digits.tasks[0].classes], old[digits.tasks[0].classes]
    )


def refit(root: str):
    """The means of two tasks at once by present features, and the accuracy on both."""
    with start(ParallelConfig(), threads=1) as context:
        stream = Stream.open(root)
        learner = learner_of(stream, context)
        evaluator = Evaluator(learner.config, stream, context, lambda *_: None)
        before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
        splits = [stream.split(t, "train") for t in (0, 1)]
        means = ncm_fit.refitted(evaluator, learner, splits)
        after = learner.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        return evaluator.by_means(learner, means, 1), means.means.numpy(), means.counts.numpy()


def test_the_oracle_has_the_means_of_all_past_images(ranks, digits):
    row, means, counts = refit(str(digits.root))
    learner = learner_of(digits, RankContext())
    evaluator = Evaluator(learner.config, digits, RankContext(), lambda *_: None)
    for task in (0, 1):
        split = digits.split(task, "train")
        features = normalize(evaluator.features(learner, split))
        for c in digits.tasks[task].classes:
            assert np.allclose(means[c], features[split.labels == c].mean(axis=0), atol=1e-6)
            assert counts[c] == (split.labels == c).sum()
    assert counts.sum() == len(digits.split(0, "train")) + len(digits.split(1, "train"))
    assert len(row) == 2
    assert min(row) > 0.5
    for theirs in ranks(refit, 2, str(digits.root)):
        assert theirs[0] == row
        assert np.allclose(theirs[1], means, atol=1e-6)


def test_replayed_images_weigh_by_the_root_of_their_rareness(digits):
    """Sums of the drift written out: 4 replayed images of a task of 16 times as many count 4."""
    learner = learner_of(digits, RankContext()).double()
    drifted(learner)
    evaluator = Evaluator(learner.config, digits, RankContext(), lambda *_: None)
    whole, past = digits.split(1, "train"), digits.split(0, "train")
    task = Split(whole.folder, whole.part, whole.index[:64])
    kept = Split(past.folder, past.part, past.index[:4])
    with inference(learner):
        sums = ncm_fit._drift(evaluator, learner, task, [kept], by_rareness=True)
        square, change = sums
        expected = torch.zeros_like(square), torch.zeros_like(change)
        for split, weight in ((task, 1), (kept, 4)):
            now = torch.from_numpy(normalize(embedded(evaluator, learner.embed, split)))
            before = torch.from_numpy(normalize(embedded(evaluator, learner.embed_before, split)))
            expected[0].add_(weight * before.T @ before)
            expected[1].add_(weight * before.T @ (now - before))
    torch.testing.assert_close(square, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(change, expected[1], rtol=1e-9, atol=1e-9)


def embedded(evaluator: Evaluator, embed, split: Split) -> np.ndarray:
    batches = evaluator.embed_own(embed.__self__, SplitRows(split), "", embed)
    return torch.cat([features for features, _ in batches]).numpy()


def test_a_teacher_whose_answers_depend_on_the_batch_is_refused():
    for asked in ({"ncm": True}, {"head": "ncm"}):
        with pytest.raises(UsageError, match=r"teacher\.batch_stats"):
            validate({"eval": asked, "teacher": {"batch_stats": True}}, "the test")
