"""Accuracy and features of a model, over all ranks: continual classifier, kNN, linear probes.

The images of a split are cut over the ranks; a sample's features depend on itself alone (the model
is in evaluation mode and not changed), so the figures do not depend on the world size. The bank of
the kNN and the training set of a probe are labelled training images of the stream, evenly spaced
and at most `eval.bank` of them: they measure the model and do not train it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation.knn import knn_predict
from kaizen_dist.evaluation.metrics import Row
from kaizen_dist.evaluation.probe import linear_probe
from kaizen_dist.learner.first_weights import UntrainedBackbone
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import BadSample, warn
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.loader import SplitRow, centre_views

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what, done, total) as images pass."""
Embedder: TypeAlias = Learner | UntrainedBackbone
Predictor: TypeAlias = Callable[[Tensor], Tensor]
"""From features [n, d] to labels [n]."""


class Evaluator:
    """Measures a learner on the tasks of a stream; `report` is called with bad samples."""

    def __init__(
        self,
        config: Config,
        stream: Stream,
        context: RankContext,
        progress: Progress,
        report: Callable[[BadSample], None] = warn,
    ) -> None:
        self.config, self.stream, self.context = config, stream, context
        self.progress, self.report = progress, report
        self.backend = open_backend(config.views, context.device)

    def accuracies(self, learner: Learner, task: int) -> tuple[Row, Row]:
        """(classifier, kNN) accuracy on every task after `task`; None where not measured.

        A task is measured if it shares a class with those seen so far.
        """
        seen = set(self.stream.seen(task))
        # Classes of later tasks are not predicted: a model deployed now does not know them.
        hidden = torch.ones(learner.num_classes, dtype=torch.bool, device=self.context.device)
        hidden[sorted(seen)] = False
        bank = self.bank(learner, range(task + 1)) if self.config.eval.knn else None
        head = learner.eval_head
        classify = None if head is None else partial(_classify, head, hidden)
        vote = None if bank is None else partial(self._vote, *bank)
        rows = []
        for other, info in enumerate(self.stream.tasks):
            predictors = [classify, vote] if seen & set(info.classes) else [None, None]
            rows.append(self._accuracy(learner, other, f"evaluate task {other + 1}", predictors))
        return [row[0] for row in rows], [row[1] for row in rows]

    def nearest_mean(self, learner: Learner, task: int) -> Row:
        """Accuracy by the nearest class mean on every task up to `task`."""
        means = learner.class_means
        assert means is not None

        def nearest(features: Tensor) -> Tensor:
            return means(features).argmax(dim=1)

        what = "nearest mean, task {}"
        tasks = range(task + 1)
        return [self._accuracy(learner, t, what.format(t + 1), [nearest])[0] for t in tasks]

    def probe(self, learner: Embedder, task: int) -> float | None:
        """Accuracy on a task of a linear probe trained for it on the frozen backbone."""
        val, rows = self.stream.split(task, "val"), self._labelled([task])
        if not rows or len(val) == 0:
            return None
        what = f"probe for task {task + 1}"
        training = self._embed_all(learner, rows, f"{what}: training")
        testing = self._embed_all(learner, SplitRows(val), f"{what}: testing")
        return linear_probe(*training, *testing, self.stream.num_classes)

    def features(self, learner: Learner, split: Split) -> NDArray[np.float32]:
        """Features [len(split), d] of a whole split, on every rank (replay by herding)."""
        features, _ = self._embed_all(learner, SplitRows(split), "features for replay")
        return features.float().cpu().numpy()

    def held_out(self, learner: Learner, task: int) -> tuple[Tensor, Tensor]:
        """(features [n, d], labels [n]) of all validation images of a task, on every rank."""
        rows = SplitRows(self.stream.split(task, "val"))
        return self._embed_all(learner, rows, f"features of task {task + 1}")

    def bank(self, learner: Learner, tasks: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """(features [n, d], labels [n]) of labelled training images of some tasks, at most
        `eval.bank` of them evenly spaced, on every rank; None where there are none."""
        rows = self._labelled(tasks)
        return self._embed_all(learner, rows, "bank of labelled images") if rows else None

    def embed_own(
        self,
        learner: Embedder,
        rows: "SplitRows | list[SplitRow]",
        what: str,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [n, d], labels [n]) of this rank's part of some samples, in batches; or
        `embed` of their images [n, 3, s, s]."""
        embed = learner.embed if embed is None else embed
        context, size = self.context, self.config.eval.batch_size
        begin, end = _bounds(len(rows), context.rank, context.world_size)
        dtype = next(learner.parameters()).dtype
        # The same number of batches on every rank, empty ones if need be: all collectives need
        # all ranks, and so does the forward pass of a model that is cut over the ranks.
        longest = -(-len(rows) // context.world_size)
        for done in range(0, max(longest, 1), size):
            self.progress(what, min(done, end - begin), end - begin)
            part = rows[begin + done : min(begin + done + size, end)]
            images, part = centre_views(self.backend, part, self.report)
            labels = torch.tensor([int(s.index[row]["label"]) for s, row in part]).long()
            yield embed(images.to(context.device, dtype)), labels.to(context.device)
        self.progress(what, end - begin, end - begin)

    def _accuracy(
        self, learner: Learner, task: int, what: str, predictors: Sequence[Predictor | None]
    ) -> Row:
        """Accuracy of each predictor on a task's validation images."""
        split = self.stream.split(task, "val")
        if len(split) == 0 or not any(predictors):
            return [None] * len(predictors)
        right = torch.zeros(len(predictors), dtype=torch.float64, device=self.context.device)
        with inference(learner):
            for features, labels in self.embed_own(learner, SplitRows(split), what):
                for i, predict in enumerate(predictors):
                    if predict is not None:
                        right[i] += (predict(features) == labels).sum()
        shares = (self.context.sum(right) / len(split)).tolist()
        return [a if p is not None else None for a, p in zip(shares, predictors, strict=True)]

    def _vote(self, bank: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        k, temperature = self.config.eval.knn_k, self.config.eval.knn_temperature
        return knn_predict(bank, labels, features, self.stream.num_classes, k, temperature)

    def _labelled(self, tasks: Sequence[int]) -> list[SplitRow]:
        """Labelled training images of some tasks, evenly spaced, at most `eval.bank`."""
        splits = [self.stream.split(task, "train") for task in tasks]
        rows = [np.flatnonzero(split.labels >= 0) for split in splits]
        ends = np.cumsum([len(of_split) for of_split in rows])
        total = int(ends[-1])
        chosen = np.linspace(0, total - 1, min(total, self.config.eval.bank)).astype(np.int64)
        of = np.searchsorted(ends, chosen, side="right").tolist()
        numbers = np.concatenate(rows)[chosen].tolist()
        return [(splits[i], row) for i, row in zip(of, numbers, strict=True)]

    def _embed_all(
        self, learner: Embedder, rows: "SplitRows | list[SplitRow]", what: str
    ) -> tuple[Tensor, Tensor]:
        """(features [N, d], labels [N]) of all samples in their order, on every rank."""
        with inference(learner):
            batches = list(self.embed_own(learner, rows, what))
        features, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        return self._gather(features, len(rows)), self._gather(labels, len(rows))

    def _gather(self, local: Tensor, total: int) -> Tensor:
        """The `total` rows of all ranks, whose parts may differ in length by one."""
        world = self.context.world_size
        if world == 1:
            return local
        bounds = [_bounds(total, rank, world) for rank in range(world)]
        longest = max(end - begin for begin, end in bounds)
        padded = local.new_zeros((longest, *local.shape[1:]))
        padded[: len(local)] = local
        parts = self.context.all_gather(padded).unflatten(0, (world, longest))
        return torch.cat([part[: e - b] for part, (b, e) in zip(parts, bounds, strict=True)])


class SplitRows:
    """Rows of a split (all if None), without an object for each: a split may have millions."""

    def __init__(self, split: Split, rows: NDArray[np.int64] | None = None) -> None:
        self._split, self._rows = split, range(len(split)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice) -> list[SplitRow]:
        return [(self._split, int(row)) for row in self._rows[part]]


@contextmanager
def inference(learner: Embedder) -> Iterator[None]:
    """Evaluation mode, without gradients: evaluation must not change the model."""
    was_training = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train(was_training)


def _classify(head: nn.Module, hidden: Tensor, features: Tensor) -> Tensor:
    labels: Tensor = head(features).masked_fill(hidden, -torch.inf).argmax(1)
    return labels


def _bounds(count: int, rank: int, world: int) -> tuple[int, int]:
    """The part of `count` rows that a rank has."""
    return count * rank // world, count * (rank + 1) // world
