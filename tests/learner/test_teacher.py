"""The teacher: a copy that nothing moves, and whose answers are constants."""

import copy

import pytest
import torch


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in now)


def taught_learner(small_learner, batch, supervise=None, **teacher):
    """A learner in its second task, its student trained a little beyond its teacher."""
    learner = small_learner("byol", teacher=teacher, supervise=supervise or {})
    learner(*batch)  # BatchNorm statistics other than the initial ones
    learner.begin_task(first=False)
    return learner


@pytest.mark.parametrize("batch_stats", [False, True])
def test_nothing_moves_it(small_learner, batch, batch_stats):
    learner = taught_learner(small_learner, batch, batch_stats=batch_stats)
    before, student = snapshot(learner.teacher), snapshot(learner.backbone)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    for step in range(3):
        learner.train()
        learner(*batch).total.backward()
        optimizer.step()
        learner.after_step(step / 3)
    assert same(learner.teacher, before)
    assert not same(learner.backbone, student)
    assert not any(p.requires_grad for p in learner.teacher.parameters())


@pytest.mark.parametrize("batch_stats", [False, True])
def test_a_parents_mode_does_not_reach_it(small_learner, batch, batch_stats):
    learner = taught_learner(small_learner, batch, batch_stats=batch_stats)
    for switch in (learner.train, learner.eval, learner.train):
        switch()
        assert {m.training for m in learner.teacher.modules()} == {batch_stats}


def test_it_answers_as_the_student_did_in_evaluation(small_learner, batch):
    branch = {"weight": 1.0, "hidden": 12, "dim": 6}
    learner = taught_learner(small_learner, batch, supervise=branch)
    taught = learner.teacher(batch[0])
    learner.eval()
    for view, projections, logits, supervised in zip(batch[0], *taught, strict=True):
        features = learner.embed(view)
        torch.testing.assert_close(projections, learner.method.projector(features))
        torch.testing.assert_close(logits, learner.logits(view))
        torch.testing.assert_close(supervised, learner.supervised.projector(features))


def test_batch_statistics_are_those_of_each_view(small_learner, batch):
    learner = taught_learner(small_learner, batch, batch_stats=True)
    reference = copy.deepcopy(learner).train()
    taught = learner.teacher(batch[0])
    for view, projections in zip(batch[0], taught.projections, strict=True):
        expected = reference.method.projector(reference.backbone(view))
        torch.testing.assert_close(projections, expected)
    frozen = taught_learner(small_learner, batch).teacher(batch[0])
    assert not torch.allclose(frozen.projections, taught.projections)


def test_its_answers_can_be_targets(small_learner, batch):
    learner = taught_learner(small_learner, batch)
    taught = learner.teacher(batch[0])
    assert not taught.projections.requires_grad
    assert not taught.projections.is_inference()
    weight = torch.ones((), requires_grad=True, dtype=torch.float64)
    (weight * taught.projections * taught.logits.sum()).sum().backward()
    assert weight.grad is not None
