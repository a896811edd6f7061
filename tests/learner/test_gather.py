"""THE RULE, with ranks played by threads that share one autograd graph.

Gathered tensors are the ranks' own tensors put together, and so the gradient of the sum of the
ranks' losses is what a differentiable all-gather would give; data parallelism takes its mean.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_learners import SMALL_SSL

from kaizen_dist.learner.gather import ALONE, own_rows
from kaizen_dist.learner.losses import classification_loss
from kaizen_dist.learner.methods import method_class

ALL = sorted(SMALL_SSL)
SUPERVISED = ("cross_entropy", "contrastive")


class Ranks:
    """What `world_size` ranks have in common."""

    def __init__(self, world_size):
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.slots = [None] * world_size

    def each(self, function):
        """function(gather) on every rank at once; the results in rank order."""
        with ThreadPoolExecutor(self.world_size) as pool:
            tasks = [pool.submit(function, PlayedGather(self, r)) for r in range(self.world_size)]
            return [task.result() for task in tasks]


class PlayedGather:
    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.world_size = ranks, rank, ranks.world_size

    def all_gather(self, local):
        self.ranks.slots[self.rank] = local
        self.ranks.barrier.wait()
        whole = torch.cat(self.ranks.slots)
        self.ranks.barrier.wait()
        return whole


def test_alone_the_own_rows_are_all():
    local = torch.randn(3, 2)
    assert torch.equal(ALONE.all_gather(local), local)
    assert own_rows(ALONE, local).tolist() == [0, 1, 2]


def test_own_rows_lie_where_the_gather_puts_them():
    rows = torch.arange(12.0).reshape(6, 2)

    def look(gather):
        local = rows.chunk(3)[gather.rank]
        return torch.equal(gather.all_gather(local)[own_rows(gather, local)], local)

    assert Ranks(3).each(look) == [True, True, True]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    ("name", "supervise"), [(n, 0) for n in ALL] + [("byol", loss) for loss in SUPERVISED]
)
def test_the_mean_over_ranks_is_the_global_batch(small_learner, batch, name, supervise, world_size):
    """Losses and all gradients of the terms, with BatchNorm's statistics held still."""
    views, labels = batch
    taught = {"weight": 0.8, "hidden": 16, "dim": 8, "loss": supervise} if supervise else {}
    learner = small_learner(name, supervise=taught)
    learner.begin_task(first=False)
    with torch.no_grad():  # away from the teacher, so that distillation has something to say
        for p in learner.backbone.parameters():
            p.mul_(1.05)
    learner.eval()

    whole = learner(views, labels)
    whole.total.backward()
    expected = {k: p.grad for k, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()

    def one(gather):
        part = slice(gather.rank * 8 // world_size, (gather.rank + 1) * 8 // world_size)
        return forward_with(learner, gather, views[:, part], labels[part])

    parts = Ranks(world_size).each(one)
    mean = torch.stack([part.stack() for part in parts]).mean(0)
    torch.testing.assert_close(mean, whole.stack(), rtol=1e-9, atol=1e-9)
    (sum(part.total for part in parts) / world_size).backward()
    for key, grad in expected.items():
        torch.testing.assert_close(learner.get_parameter(key).grad, grad, rtol=1e-8, atol=1e-8)


def forward_with(learner, gather, views, labels):
    """The learner's forward as another rank would run it: same weights, another gather."""
    twin = object.__new__(type(learner))
    twin.__dict__ = {**learner.__dict__, "gather": gather}
    return twin(views, labels)


def test_no_labels_on_one_rank_and_none_at_all():
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    for labels in (torch.tensor([0, 2, -1, -1]), torch.full((4,), -1)):
        expected = classification_loss(logits, labels, ALONE)

        def one(gather, labels=labels):
            part = slice(2 * gather.rank, 2 * gather.rank + 2)
            return classification_loss(logits[:, part], labels[part], gather)

        torch.testing.assert_close(torch.stack(Ranks(2).each(one)).mean(), expected)


def test_the_queue_is_of_the_global_batch():
    method = method_class("mocov2plus")
    settings = method.Settings(hidden=4, dim=3, queue=10)
    keys = torch.randn(2, 8, 3)
    alone = method(4, settings)
    start = alone.queue.clone()
    alone.remember(tuple(keys), ALONE)

    def one(gather):
        moco = method(4, settings)
        moco.queue.copy_(start)
        moco.remember(tuple(k.chunk(4)[gather.rank] for k in keys), gather)
        return moco.queue

    assert all(torch.equal(queue, alone.queue) for queue in Ranks(4).each(one))


def test_labels_are_counted_over_all_ranks(small_learner, batch):
    """The adjusted loss and its counts are those of the global batch, step after step."""
    _, labels = batch
    logits = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(3)).double()
    alone, *own = (small_learner("simclr", classifier={"logit_adjustment": 1.0}) for _ in range(3))

    def one(gather):
        learner, part = own[gather.rank], slice(4 * gather.rank, 4 * gather.rank + 4)
        learner.gather = gather
        return learner._learn_labels(logits[:, part], labels[part])

    for step in (1, 2):
        whole = alone._learn_labels(logits, labels)
        parts = Ranks(2).each(one)
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=1e-9)
        assert alone.labels_seen.tolist() == [step] * 5
        for learner in own:
            assert torch.equal(learner.labels_seen, alone.labels_seen)
