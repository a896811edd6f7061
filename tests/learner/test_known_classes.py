"""A classifier that grows: as if its classes had been there always, and unknown to its teacher."""

import pytest
import torch
from small_learners import small_config

from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.learner.first_weights import class_rows
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.losses import without_classes

VIEWS = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.tensor([0, 1, -1, 2, 3, 4, 1, -1])
ADJUSTED = {"classifier": {"logit_adjustment": 1.0}, "eval": {"ncm": True}}


def of(classes: int, **sections) -> Learner:
    return Learner(small_config("simclr", **sections), classes).double()


@pytest.mark.parametrize("over", ["known", "all"])
def test_a_class_has_the_first_weights_that_it_has_in_a_larger_classifier(over):
    """With `all`, where nothing grows, they are torch's own for the whole layer."""
    few, many = (of(n, classifier={"over": over}) for n in (3, 5))
    equal = torch.equal(few.classifier[-1].bias, many.classifier[-1].bias[:3])
    assert equal == (over == "known")
    assert torch.equal(few.classifier[-1].weight, many.classifier[-1].weight[:3])
    # The hidden layer is drawn before it.
    assert torch.equal(few.classifier[0].weight, many.classifier[0].weight)


def test_first_weights_are_those_of_torchs_linear_layer():
    """Uniform within 1 / sqrt(width), whatever is drawn with them."""
    rows = class_rows(seed=3, first=0, last=2000, width=15)
    bound = 15**-0.5
    assert rows.shape == (2000, 16)
    assert rows.abs().max() < bound
    assert rows.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(rows.mean()) < 0.01
    assert torch.equal(class_rows(3, 1500, 1502, 15), rows[1500:1502])
    assert not torch.equal(class_rows(4, 0, 1, 15), rows[:1])


def test_a_learner_that_grew_is_the_larger_one():
    taught = {"supervise": {"weight": 1.0, "hidden": 16, "dim": 8}}
    grown, large = of(2, **ADJUSTED, **taught), of(5, **ADJUSTED, **taught)
    grown.begin_task(first=False, classes=KnownClasses(4))
    grown.begin_task(first=False, classes=KnownClasses(5))
    large.begin_task(first=False)
    ours, theirs = grown.state_dict(), large.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.startswith("teacher.classifier.2"):
            assert torch.equal(ours[name], tensor[:4])
        else:
            assert torch.equal(ours[name], tensor), name


def test_what_has_been_learnt_stays():
    learner = of(3, **ADJUSTED)
    with torch.no_grad():
        for tensor in learner.state_dict().values():
            tensor.fill_(7)
    learner.grow(5)
    for name in ("classifier.2.weight", "classifier.2.bias", "class_means.means"):
        assert (learner.state_dict()[name][:3] == 7).all(), name
    assert learner.class_means.counts.tolist() == [7, 7, 7, 0, 0]
    # Never predicted: it has no image yet.
    assert learner.class_means(torch.randn(4, 512).double()).argmax(1).max() < 3
    with pytest.raises(ValueError, match="5 classes cannot become 4"):
        learner.grow(4)


def test_the_teacher_gives_classes_that_it_does_not_know_no_probability():
    """By hand: the student's softmax over all five against the teacher's over its three, mean over
    views and rows."""
    learner = of(3)
    learner.begin_task(first=False, classes=KnownClasses(5))
    learner.eval()  # batch statistics that do not move
    losses = learner(VIEWS, LABELS)
    with torch.no_grad():
        features = learner.backbone(VIEWS.flatten(0, 1))
        said = learner.classifier(features).log_softmax(1)[:, :3]
        old = learner.teacher.classifier(learner.teacher.backbone(VIEWS.flatten(0, 1))).softmax(1)
        by_hand = -(old * said).sum(1).mean()
    weight = learner.config.distill.classifier_weight
    assert losses.kd_classifier.item() == pytest.approx(weight * by_hand.item(), rel=1e-9)


def test_classes_that_have_not_come_have_no_part_in_any_loss():
    """A stream of format 1 numbered them all: 1 and 4 are there, and unseen."""
    learner, without = of(5), of(5)
    learner.begin_task(first=False, classes=KnownClasses(5, unseen=(1, 4), unseen_before=(1, 2, 4)))
    without.begin_task(first=False)
    labels = torch.tensor([0, 2, -1, 3, 3, 2, 0, -1])
    for each in (learner, without):
        each.eval()
    losses = learner(VIEWS, labels)
    (losses.classifier + losses.kd_classifier).backward()
    gradient = learner.classifier[-1].weight.grad.abs().sum(1)
    assert (gradient[[1, 4]] == 0).all()
    assert (gradient[[0, 2, 3]] > 0).all()
    with torch.no_grad():
        logits = without.classifier(without.backbone(VIEWS.flatten(0, 1)))[:, [0, 2, 3]]
        number = {0: 0, 2: 1, 3: 2, -1: -100}
        targets = torch.tensor([number[label] for label in labels.tolist()]).repeat(2)
        by_hand = 2 * torch.nn.functional.cross_entropy(logits, targets)  # summed over the views
    assert losses.classifier.item() == pytest.approx(by_hand.item(), rel=1e-9)


def test_masks_move_with_the_learner_and_are_no_state():
    """An engine may begin a task on the CPU, and move the learner to its device."""
    learner = of(5)
    names = learner.state_dict().keys()
    learner.begin_task(first=True, classes=KnownClasses(5, unseen=(1,), unseen_before=(1, 2)))
    assert learner.state_dict().keys() == names
    moved = learner.to("meta")
    assert moved.unseen.is_meta
    assert moved.unseen_before.is_meta


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hidden_logits_are_finite_in_every_precision(kind):
    hidden = torch.tensor([False, True])
    logits = without_classes(torch.zeros(3, 2, dtype=kind), hidden)
    assert torch.isfinite(logits).all()
    assert logits.softmax(1)[:, 1].max() == 0
    assert without_classes(logits, None) is logits
