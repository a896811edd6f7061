"""What follows on a task's last step: all that was learnt is measured, and a part of it is kept."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation import metrics, ncm_fit
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.learner.learner import Learner
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay import ReplayStore, choose
from kaizen_dist.stream.shards import Split
from kaizen_dist.training.bad_sample_log import BadSampleLog
from kaizen_dist.training.run_log import Journal


class Closing:
    """Fills a run's `results` and its replay store; `stop` may raise where that loses nothing."""

    def __init__(
        self,
        config: Config,
        stream: Stream,
        run: Path,
        context: RankContext,
        journal: Journal,
        bad_samples: BadSampleLog,
        results: Results,
        stop: Callable[[], None],
    ) -> None:
        self.config, self.stream, self.context = config, stream, context
        self.journal, self.bad_samples, self.results, self.stop = (
            journal,
            bad_samples,
            results,
            stop,
        )
        self.store = ReplayStore(run)
        self.evaluator = Evaluator(config, stream, context, self.progress, bad_samples.report)

    def named(self, task: int) -> str:
        """A task for the person who watches: counted from 1, as on the page."""
        return f"task {task + 1}/{len(self.stream)}"

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass on how far the evaluation is; a place to stop that needs no save."""
        self.journal.progress(what, done, total)
        self.stop()

    def measure_untrained(self, learner: Learner) -> None:
        """What the backbone gives each task before a first step."""
        later = range(1, len(self.stream))
        random = [self.evaluator.probe(learner, task) for task in later]
        self.results.probe_random = [None, *random]
        self.results.probe_before = [None] * len(self.stream)

    def measure(self, learner: Learner, task: int) -> None:
        """All that was learnt, and what it gives the task to come."""
        if learner.class_means is not None:
            past = range(task if self.config.replay.fraction > 0 else 0)
            replayed = [self.store.split(t) for t in past]
            ncm_fit.update(self.evaluator, learner, self.stream.split(task, "train"), replayed)
        accuracy, knn = self.evaluator.accuracies(learner, task)
        self.results.accuracy.append(accuracy)
        self.results.knn.append(knn)
        if self.results.ncm is not None:
            nothing: list[float | None] = [None] * len(accuracy)
            means = learner.class_means is not None
            self.results.ncm.append(
                self.evaluator.nearest_mean(learner, task) if means else nothing
            )
        # Not where it was switched on later: there is nothing to compare it with.
        if self.config.eval.forward_transfer and task + 1 < len(self.results.probe_before):
            self.results.probe_before[task + 1] = self.evaluator.probe(learner, task + 1)
        self.results.update_metrics()
        self.chart(task)
        known = ", ".join("-" if a is None else f"{a:.3f}" for a in accuracy)
        self.journal.say(f"after {self.named(task)}: accuracy on each {known}")

    def chart(self, task: int) -> None:
        """What was known after a finished task, for TensorBoard."""
        rows = self.results.accuracy[: task + 1]
        self.journal.scalar("final_accuracy", metrics.final_accuracy(rows), task)
        self.journal.scalar("forgetting", metrics.forgetting(rows), task)

    def keep(self, learner: Learner, task: int) -> None:
        """A part of the finished task, for replay; the ranks write it together."""
        replay = self.config.replay
        if replay.fraction == 0:
            return
        split = self.stream.split(task, "train")
        herding = replay.select == "herding"
        features = self.evaluator.features(learner, split) if herding else None
        rows = self.choose(task, split, features)
        if self.context.main:
            self.store.discard_unfinished(task)
        self.context.barrier()
        self.store.write_shards(task, split, rows, self.context.rank, self.context.world_size)
        self.context.barrier()
        if self.context.main:
            self.store.commit(task, len(rows))
        self.context.barrier()

    def choose(
        self, task: int, split: Split, features: NDArray[np.floating] | None
    ) -> NDArray[np.int64]:
        """The rows of a task to keep; all of them decode, whatever training has met."""
        replay, seed = self.config.replay, self.config.train.seed
        bad = np.empty(0, dtype=np.int64)
        while True:
            rows = choose(split, replay.fraction, replay.select, seed, task, features, bad)
            checked = partial(self.progress, "check replay")
            found = self.bad_samples.undecodable(split, rows, checked)
            if len(found) == 0:
                return rows
            bad = np.concatenate([bad, found])
