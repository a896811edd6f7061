"""What a model knows, measured over all ranks: the continual classifier, kNN, linear probes.

The images of a split are cut over the ranks; a sample's features depend on itself alone
(the model is in inference mode and not changed), so the figures do not depend on the world
size. The bank of the kNN and the training set of a probe are labelled training images of
the stream, spread evenly and at most `eval.bank` of them: they measure, they do not teach.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation.knn import knn_predict
from kaizen_dist.evaluation.metrics import Row
from kaizen_dist.evaluation.probe import linear_probe
from kaizen_dist.learner.learner import Learner
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.bad_samples import BadSample, warn
from kaizen_dist.views.choose import open_backend
from kaizen_dist.views.loader import SplitRow, centre_views

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as images pass."""


class Evaluator:
    """Measures a learner on the tasks of a stream."""

    def __init__(
        self,
        config: Config,
        stream: Stream,
        context: RankContext,
        progress: Progress,
        tell: Callable[[BadSample], None] = warn,
    ) -> None:
        self.config = config
        self.stream = stream
        self.context = context
        self.progress = progress
        self.tell = tell
        self.backend = open_backend(config.views, context.device)

    def accuracies(self, learner: Learner, task: int) -> tuple[Row, Row]:
        """(classifier, kNN) accuracy on every task after `task`; null where not measured.

        A task is measured if it shares a class with those seen so far.
        """
        seen = sorted({c for t in range(task + 1) for c in self.stream.tasks[t].classes})
        bank = self.bank(learner, range(task + 1)) if self.config.eval.knn else None
        classifier: Row = []
        knn: Row = []
        for other, info in enumerate(self.stream.tasks):
            split = self.stream.split(other, "val")
            if len(split) == 0 or not set(info.classes) & set(seen):
                classifier.append(None)
                knn.append(None)
                continue
            by_classifier, by_knn = self._measure(learner, other, split, seen, bank)
            classifier.append(by_classifier)
            knn.append(by_knn)
        return classifier, knn

    def probe(self, learner: Learner, task: int) -> float | None:
        """Accuracy on a task of a linear probe trained for it on the frozen backbone."""
        val = self.stream.split(task, "val")
        places = self._labelled([task])
        if not places or len(val) == 0:
            return None
        with inference(learner):
            features, labels = self._embed_all(
                learner, places, f"probe for task {task + 1}: training"
            )
            held_out = Places(val)
            tests, answers = self._embed_all(
                learner, held_out, f"probe for task {task + 1}: testing"
            )
        return linear_probe(features, labels, tests, answers, self.stream.num_classes)

    def features(self, learner: Learner, split: Split) -> NDArray[np.float32]:
        """Features [len(split), d] of a whole split, on every rank (replay by herding)."""
        places = Places(split)
        with inference(learner):
            features, _ = self._embed_all(learner, places, "features for replay")
        return features.float().cpu().numpy()

    def nearest_mean(self, learner: Learner, task: int) -> Row:
        """Accuracy by the nearest class mean on every task up to `task`."""
        assert learner.class_means is not None
        row: Row = []
        for other in range(task + 1):
            split = self.stream.split(other, "val")
            right = torch.zeros(1, dtype=torch.float64, device=self.context.device)
            with inference(learner):
                what = f"nearest mean, task {other + 1}"
                for features, labels in self.embed_own(learner, Places(split), what):
                    right += (learner.class_means(features).argmax(dim=1) == labels).sum()
            count = len(split)
            row.append(self.context.sum(right).item() / count if count else None)
        return row

    def held_out(self, learner: Learner, task: int) -> tuple[Tensor, Tensor]:
        """(features [n, d], labels [n]) of all validation images of a task, on every rank."""
        places = Places(self.stream.split(task, "val"))
        with inference(learner):
            return self._embed_all(learner, places, f"features of task {task + 1}")

    def bank(self, learner: Learner, tasks: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """(features [n, d], labels [n]) of labelled training images of some tasks, at most
        `eval.bank` of them evenly spread, on every rank; None where there are none."""
        places = self._labelled(tasks)
        if not places:
            return None
        with inference(learner):
            return self._embed_all(learner, places, "bank of labelled images")

    def _measure(
        self,
        learner: Learner,
        task: int,
        split: Split,
        seen: Sequence[int],
        bank: tuple[Tensor, Tensor] | None,
    ) -> tuple[float | None, float | None]:
        """Classifier and kNN accuracy on one validation split."""
        places = Places(split)
        right = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        # Classes not met yet cannot be answers: what is deployed now does not know them.
        hidden = torch.ones(self.stream.num_classes, dtype=torch.bool, device=self.context.device)
        hidden[list(seen)] = False
        with inference(learner):
            for features, labels in self.embed_own(learner, places, f"evaluate task {task + 1}"):
                if learner.eval_head is not None:
                    logits = learner.eval_head(features).masked_fill(hidden, -torch.inf)
                    right[0] += (logits.argmax(1) == labels).sum()
                if bank is not None:
                    predicted = knn_predict(
                        *bank,
                        features,
                        self.stream.num_classes,
                        self.config.eval.knn_k,
                        self.config.eval.knn_temperature,
                    )
                    right[1] += (predicted == labels).sum()
        by_classifier, by_knn = (self.context.sum(right) / len(split)).tolist()
        return (
            by_classifier if learner.eval_head is not None else None,
            by_knn if bank is not None else None,
        )

    def _labelled(self, tasks: Sequence[int]) -> list[SplitRow]:
        """Labelled training images of some tasks, evenly spread, at most `eval.bank`."""
        splits = [self.stream.split(task, "train") for task in tasks]
        rows = [np.flatnonzero(split.labels >= 0) for split in splits]
        ends = np.cumsum([len(of_split) for of_split in rows])
        total = int(ends[-1])
        chosen = np.linspace(0, total - 1, min(total, self.config.eval.bank)).astype(np.int64)
        of = np.searchsorted(ends, chosen, side="right")
        numbers = np.concatenate(rows)[chosen]
        return [(splits[i], row) for i, row in zip(of.tolist(), numbers.tolist(), strict=True)]

    def embed_own(
        self,
        learner: Learner,
        places: Sequence[SplitRow],
        what: str,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [n, d], labels [n]) of this rank's part of some samples, in batches; or
        what `embed` makes of their images [n, 3, s, s]."""
        embed = learner.embed if embed is None else embed
        context, size = self.context, self.config.eval.batch_size
        own = places[_share(len(places), context.rank, context.world_size)]
        dtype = next(learner.parameters()).dtype
        # As many batches on every rank, if need be empty ones: all collectives need all ranks, and
        # the forward pass of a model that is cut over the ranks is one.
        longest = -(-len(places) // context.world_size)
        for start in range(0, max(longest, 1), size):
            self.progress(what, min(start, len(own)), len(own))
            part = own[start : start + size]
            images, part = centre_views(self.backend, part, self.tell)
            labels = torch.tensor([int(s.index[row]["label"]) for s, row in part]).long()
            yield embed(images.to(context.device, dtype)), labels.to(context.device)
        self.progress(what, len(own), len(own))

    def _embed_all(
        self, learner: Learner, places: Sequence[SplitRow], what: str
    ) -> tuple[Tensor, Tensor]:
        """(features [N, d], labels [N]) of all samples in their order, on every rank."""
        parts = list(self.embed_own(learner, places, what))
        world = self.context.world_size
        lengths = [_length(_share(len(places), rank, world)) for rank in range(world)]
        features, labels = (self._gather(column, lengths) for column in zip(*parts, strict=True))
        return features, labels

    def _gather(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Parts of unequal length from every rank, joined."""
        local = torch.cat(list(parts))
        if self.context.world_size == 1:
            return local
        longest = max(lengths)
        padded = local.new_zeros((longest, *local.shape[1:]))
        padded[: len(local)] = local
        whole = self.context.all_gather(padded)
        return torch.cat([whole[r * longest : r * longest + n] for r, n in enumerate(lengths)])


class Places(Sequence[SplitRow]):
    """Rows of a split (all if None), without an object for each: a split may have millions."""

    def __init__(self, split: Split, rows: range | NDArray[np.int64] | None = None) -> None:
        self._split = split
        self._rows = range(len(split)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, key: int) -> SplitRow: ...
    @overload
    def __getitem__(self, key: slice) -> "Places": ...
    def __getitem__(self, key: int | slice) -> "SplitRow | Places":
        if isinstance(key, slice):
            return Places(self._split, self._rows[key])
        return self._split, int(self._rows[key])


@contextmanager
def inference(learner: Learner) -> Iterator[None]:
    """Evaluation never changes the model: frozen statistics, no gradients, and back again."""
    was_training = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train(was_training)


def _share(count: int, rank: int, world: int) -> slice:
    return slice(count * rank // world, count * (rank + 1) // world)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
