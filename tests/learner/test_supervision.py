"""Labels that teach the backbone through a branch of their own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_learners import small_config

from kaizen_dist.learner import losses
from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.learner.gather import ALONE

LABELS = torch.tensor([0, -1, 2, 0, -1, 2, 1, 0])
BRANCH = {"hidden": 12, "dim": 6}


def pair(seed=0, rows=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 6, generator=generator, dtype=torch.float64)


def written_out(z1, z2, labels, temperature):
    """Equation 2 of arXiv 2004.11362 with loops; the mean over the rows that have a label."""
    rows = [row / np.linalg.norm(row) for row in torch.cat([z1, z2]).numpy()]
    of_row = [*labels.tolist(), *labels.tolist()]
    known = [i for i, label in enumerate(of_row) if label != -1]
    terms = []
    for i in known:
        others = [j for j in known if j != i]
        below = sum(np.exp(rows[i] @ rows[j] / temperature) for j in others)
        same = [j for j in others if of_row[j] == of_row[i]]
        terms.append(
            -sum(np.log(np.exp(rows[i] @ rows[p] / temperature) / below) for p in same) / len(same)
        )
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_contrastive_loss_written_out(temperature):
    z1, z2 = pair()
    value = losses.supervised_contrastive(z1, z2, LABELS, temperature, ALONE)
    assert value.item() == pytest.approx(written_out(z1, z2, LABELS, temperature), rel=1e-9)


def test_with_a_class_an_image_it_is_that_of_simclr():
    z1, z2 = pair(1)
    ours = losses.supervised_contrastive(z1, z2, torch.arange(8), 0.2, ALONE)
    torch.testing.assert_close(ours, losses.nt_xent(z1, z2, 0.2, ALONE), rtol=1e-12, atol=0)


def test_unlabelled_images_have_no_part_in_it():
    z1, z2 = (z.requires_grad_() for z in pair(2))
    whole = losses.supervised_contrastive(z1, z2, LABELS, 0.1, ALONE)
    known = LABELS != -1
    part = losses.supervised_contrastive(z1[known], z2[known], LABELS[known], 0.1, ALONE)
    torch.testing.assert_close(whole, part)
    whole.backward()
    assert z1.grad[~known].abs().sum() == 0
    assert z1.grad[known].abs().sum() > 0


def test_no_label_at_all_is_no_loss_and_a_gradient_of_nothing():
    z1, z2 = (z.requires_grad_() for z in pair(3))
    value = losses.supervised_contrastive(z1, z2, torch.full((8,), -1), 0.1, ALONE)
    assert value.item() == 0
    value.backward()
    assert (z1.grad == 0).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "contrastive"])
def test_labels_reach_the_backbone_through_the_branch_alone(small_learner, batch, loss):
    learner = small_learner("simclr", supervise={"weight": 1.0, "loss": loss, **BRANCH})
    learner.begin_task(first=False)
    with torch.no_grad():
        for p in learner.backbone.parameters():
            p.mul_(1.05)
    given = learner(*batch)
    assert given.supervised.item() > 0
    assert given.kd_supervised.item() > 0
    for term, parts in (
        ("supervised", {"backbone", "projector"} | ({"directions"} if "cross" in loss else set())),
        ("kd_supervised", {"backbone", "projector", "predictor"}),
    ):
        learner.zero_grad(set_to_none=True)
        getattr(learner(*batch), term).backward()
        moved = {
            name.removeprefix("supervised.").split(".")[0]
            for name, p in learner.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert moved == parts, term
    given = learner(*batch)
    learner.zero_grad(set_to_none=True)
    given.total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in learner.parameters())


def test_cross_entropy_is_torchs_on_cosines(small_learner, batch):
    learner = small_learner("simclr", supervise={"weight": 0.7, "temperature": 0.5, **BRANCH})
    views, labels = batch
    found = learner(views, labels).supervised
    rows = F.normalize(learner.supervised.directions.weight, dim=1)
    said = [
        F.normalize(learner.supervised.projector(learner.backbone(view)), dim=1) @ rows.T / 0.5
        for view in views
    ]
    by_hand = sum(F.cross_entropy(logits, labels, ignore_index=-1) for logits in said) / 2
    torch.testing.assert_close(found, 0.7 * by_hand)


@pytest.mark.parametrize(
    ("tasks", "first", "later"),
    [("all", True, True), ("first", True, False)],
)
def test_the_tasks_whose_labels_teach(small_learner, batch, tasks, first, later):
    learner = small_learner("simclr", supervise={"weight": 1.0, "tasks": tasks, **BRANCH})
    for is_first, on in ((True, first), (False, later)):
        learner.begin_task(first=is_first, classes=KnownClasses(5 if is_first else 7))
        given = learner(*batch)
        assert (given.supervised.item() != 0) == on
        assert (given.kd_supervised.item() != 0) == (on and not is_first)
        given.total.backward()
        assert all((p.grad is not None) == p.requires_grad for p in learner.parameters())
        learner.zero_grad(set_to_none=True)


def test_weights_of_other_parts_do_not_depend_on_it(small_learner):
    without = small_learner("byol").state_dict()
    taught = small_learner("byol", supervise={"weight": 1.0, **BRANCH}).state_dict()
    for name, tensor in without.items():
        assert torch.equal(taught[name], tensor), name


def test_labels_alone_may_teach():
    """Without the self-supervised loss, and with Kaizen's classifier on stopped features."""
    off = {"features": False, "classifier": False}
    small_config("byol", ssl_weight=0.0, distill=off, supervise={"weight": 1.0})
