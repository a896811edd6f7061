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
from kaizen_dist.evaluation.analysis import ECE_BINS, calibration_gaps
from kaizen_dist.evaluation.knn import knn_predict
from kaizen_dist.evaluation.metrics import Row
from kaizen_dist.evaluation.probe import linear_probe
from kaizen_dist.learner.first_weights import UntrainedBackbone
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.ncm import ClassMeans
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import BadSample, warn
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.loader import SplitRow, centre_views

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what, done, total) as images pass."""
Embedder: TypeAlias = Learner | UntrainedBackbone
Judge: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From features [n, d] and labels [n] to whether each is predicted: bool [n]."""


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

    def accuracies(self, learner: Learner, task: int) -> tuple[Row, Row, float | None]:
        """(classifier, kNN) accuracy on every task after `task`, None where not measured; and the
        classifier's calibration error on all tasks up to it.

        A task is measured if it shares a class with those seen so far.
        """
        seen = set(self.stream.seen(task))
        # Classes of later tasks are not predicted: a model deployed now does not know them.
        hidden = torch.ones(learner.num_classes, dtype=torch.bool, device=self.context.device)
        hidden[sorted(seen)] = False
        bank = self.bank(learner, range(task + 1)) if self.config.eval.knn else None
        head = learner.eval_head
        classify = None if head is None else Classifier(head, hidden)
        vote = None if bank is None else partial(self._vote, *bank)
        rows, error = [], None
        for other, info in enumerate(self.stream.tasks):
            judges = [classify, vote] if seen & set(info.classes) else [None, None]
            rows.append(self._accuracy(learner, other, f"evaluate task {other + 1}", judges))
            if other == task and classify is not None:
                error = classify.calibration_error(self.context)
        return [row[0] for row in rows], [row[1] for row in rows], error

    def by_means(self, learner: Learner, means: ClassMeans, task: int) -> Row:
        """Accuracy by the nearest class mean on every task up to `task`."""

        def nearest(features: Tensor, labels: Tensor) -> Tensor:
            return means(features).argmax(dim=1) == labels

        what = "nearest mean, task {}"
        tasks = range(task + 1)
        return [self._accuracy(learner, t, what.format(t + 1), [nearest])[0] for t in tasks]

    def probe(self, learner: Embedder, task: int) -> float | None:
        """Accuracy on a task of a linear probe trained for it on the frozen backbone."""
        val, rows = self.stream.split(task, "val"), self._labelled([task])
        if not rows or len(val) == 0:
            return None
        what = f"probe for task {task + 1}"
        training = self.embed_all(learner, rows, f"{what}: training")
        testing = self.embed_all(learner, SplitRows(val), f"{what}: testing")
        return linear_probe(*training, *testing, self.stream.num_classes)

    def features(self, learner: Learner, split: Split) -> NDArray[np.float32]:
        """Features [len(split), d] of a whole split, on every rank (replay by herding)."""
        features, _ = self.embed_all(learner, SplitRows(split), "features for replay")
        return features.float().cpu().numpy()

    def held_out(self, learner: Learner, task: int) -> tuple[Tensor, Tensor]:
        """(features [n, d], labels [n]) of all validation images of a task, on every rank."""
        rows = SplitRows(self.stream.split(task, "val"))
        return self.embed_all(learner, rows, f"features of task {task + 1}")

    def bank(self, learner: Learner, tasks: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """(features [n, d], labels [n]) of labelled training images of some tasks, at most
        `eval.bank` of them evenly spaced, on every rank; None where there are none."""
        rows = self._labelled(tasks)
        return self.embed_all(learner, rows, "bank of labelled images") if rows else None

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

    def embed_all(
        self, learner: Embedder, rows: "SplitRows | list[SplitRow]", what: str
    ) -> tuple[Tensor, Tensor]:
        """(features [N, d], labels [N]) of all samples in their order, on every rank."""
        with inference(learner):
            batches = list(self.embed_own(learner, rows, what))
        features, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        return self._gather(features, len(rows)), self._gather(labels, len(rows))

    def _accuracy(
        self, learner: Learner, task: int, what: str, judges: Sequence[Judge | None]
    ) -> Row:
        """Accuracy on a task's validation images by each of the judges."""
        split = self.stream.split(task, "val")
        if len(split) == 0 or not any(judges):
            return [None] * len(judges)
        right = torch.zeros(len(judges), dtype=torch.float64, device=self.context.device)
        with inference(learner):
            for features, labels in self.embed_own(learner, SplitRows(split), what):
                for i, judge in enumerate(judges):
                    if judge is not None:
                        right[i] += judge(features, labels).sum()
        shares = (self.context.sum(right) / len(split)).tolist()
        return [a if j is not None else None for a, j in zip(shares, judges, strict=True)]

    def _vote(self, bank: Tensor, of_bank: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        k, temperature = self.config.eval.knn_k, self.config.eval.knn_temperature
        classes = self.stream.num_classes
        return knn_predict(bank, of_bank, features, classes, k, temperature) == labels

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


class Classifier:
    """Judges by a head over the classes that are not `hidden` [C]; counts how sure it was."""

    def __init__(self, head: nn.Module, hidden: Tensor) -> None:
        self._head, self._hidden = head, hidden
        # Of each bin of confidence, and behind them the images.
        self._sums = torch.zeros(ECE_BINS + 1, dtype=torch.float64, device=hidden.device)

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self._head(features).masked_fill(self._hidden, -torch.inf)
        confidence, predicted = logits.double().softmax(1).max(1)
        right: Tensor = predicted == labels
        self._sums[:-1] += calibration_gaps(confidence, right)
        self._sums[-1] += len(labels)
        return right

    def calibration_error(self, context: RankContext) -> float | None:
        """Over the images of all ranks so far; None without any."""
        *gaps, images = context.sum(self._sums).tolist()
        return sum(map(abs, gaps)) / images if images else None


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


def _bounds(count: int, rank: int, world: int) -> tuple[int, int]:
    """The part of `count` rows that a rank has."""
    return count * rank // world, count * (rank + 1) // world
