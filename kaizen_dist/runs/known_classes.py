"""Which classes a run's classifier knows in a task of its stream."""

from kaizen_dist.config import Config
from kaizen_dist.learner.learner import KnownClasses
from kaizen_dist.stream.manifest import Stream


def known_classes(config: Config, stream: Stream, task: int) -> KnownClasses:
    """Of a task, 0 being the first (and what a run begins with, for the one before it)."""
    if config.classifier.over == "all":
        return KnownClasses(stream.num_classes)
    task = max(task, 0)
    before = stream.unseen(task - 1) if task > 0 else ()
    return KnownClasses(stream.known_classes(task), stream.unseen(task), before)
