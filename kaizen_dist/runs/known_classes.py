"""Which classes a run's classifier knows in a task of its stream."""

from collections.abc import Sequence

from kaizen_dist.config import Config
from kaizen_dist.learner.classes import KnownClasses
from kaizen_dist.stream.manifest import Stream


def known_classes(
    config: Config, stream: Stream, task: int, labels: Sequence[int] = ()
) -> KnownClasses:
    """Of a task, 0 being the first (and what a run begins with, for the one before it).

    `labels` says by how many of the labels that came later each task so far was learnt
    (`Results.late_labels`); further tasks go by those that `stream` goes by.
    """
    if config.classifier.over == "all":
        return KnownClasses(stream.num_classes)
    task = max(task, 0)
    now = _as_learnt(stream, task, labels)
    before = _as_learnt(stream, task - 1, labels).unseen(task - 1) if task > 0 else ()
    return KnownClasses(now.known_classes(task), now.unseen(task), before)


def _as_learnt(stream: Stream, task: int, labels: Sequence[int]) -> Stream:
    return stream.by_labels(labels[task]) if task < len(labels) else stream
