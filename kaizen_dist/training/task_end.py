"""The end of a task: the model is evaluated, and a part of the task is kept for replay."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.evaluation import metrics, ncm_fit
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.learner.first_weights import UntrainedBackbone
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.ncm import ClassMeans
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay import ReplayStore, choose
from kaizen_dist.stream.shards import Split
from kaizen_dist.training.bad_sample_log import BadSampleLog
from kaizen_dist.training.run_log import RunLog


@dataclass
class TaskEnd:
    """Fills a run's `results` and its replay store; `stop` may raise between two batches."""

    config: Config
    stream: Stream
    run: Path
    context: RankContext
    log: RunLog
    bad_samples: BadSampleLog
    results: Results
    stop: Callable[[], None]

    def __post_init__(self) -> None:
        self.store = ReplayStore(self.run)
        self.evaluator = Evaluator(
            self.config, self.stream, self.context, self.progress, self.bad_samples.report
        )

    def named(self, task: int) -> str:
        """A task in messages: counted from 1, as in the report."""
        return f"task {task + 1}/{len(self.stream)}"

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the evaluation; a stop here needs no checkpoint."""
        self.log.progress(what, done, total)
        self.stop()

    def take_up(self, stream: Stream) -> None:
        """Go on with a stream that has grown."""
        self.stream = self.evaluator.stream = stream

    def replayed(self, task: int) -> Split:
        """The images kept of a past task."""
        return self.stream.relabelled(self.store.split(task))

    def labelled_late(self, past: int, task: int) -> Split:
        """The images kept of a past task that have another label than in the task before `task`."""
        then = self.stream.by_labels(self.results.late_labels[task - 1])
        before, now = then.relabelled(self.store.split(past)).labels, self.replayed(past)
        return now.take(np.flatnonzero(before != now.labels))

    def measure_before(self, learner: Learner, task: int) -> None:
        """Linear probes for a task that has not begun, on the backbone and on an untrained one."""
        if not self.config.eval.forward_transfer or task == 0:
            return
        before, untrained = self.results.probe_before, self.results.probe_random
        for probes in (before, untrained):
            probes += [None] * (task + 1 - len(probes))
        if untrained[task] is None:
            backbone = UntrainedBackbone(self.config).to(self.context.device)
            untrained[task] = self.evaluator.probe(backbone, task)
        if before[task] is None:
            before[task] = self.evaluator.probe(learner, task)

    def measure(self, learner: Learner, task: int) -> None:
        """Accuracy on all tasks."""
        if learner.class_means is not None:
            past = range(task if self.config.replay.fraction > 0 else 0)
            replayed = [self.replayed(t) for t in past]
            late = [self.labelled_late(t, task) for t in past]
            own = self.stream.split(task, "train")
            ncm_fit.update(self.evaluator, learner, own, replayed, late)
        accuracy, knn, calibration = self.evaluator.accuracies(learner, task)
        self.results.accuracy.append(accuracy)
        self.results.knn.append(knn)
        errors = self.results.calibration  # shorter in a run of an older version
        errors += [*[None] * (task - len(errors)), calibration]
        if self.results.ncm is not None:
            self.results.ncm.append(self.by_means(learner, learner.class_means, task))
        if self.results.oracle is not None:
            seen = [self.stream.split(t, "train") for t in range(task + 1)]
            means = ncm_fit.refitted(self.evaluator, learner, seen)
            self.results.oracle.append(self.by_means(learner, means, task))
        self.results.update_metrics()
        self.chart(task)
        known = ", ".join("-" if a is None else f"{a:.3f}" for a in accuracy)
        self.log.say(f"after {self.named(task)}: accuracy on each {known}")

    def by_means(self, learner: Learner, means: ClassMeans | None, task: int) -> metrics.Row:
        """A row of `results.json` by some class means; nothing is measured where there are none."""
        if means is None:
            return [None] * (task + 1)
        return self.evaluator.by_means(learner, means, task)

    def chart(self, task: int) -> None:
        """The metrics after a finished task, for TensorBoard."""
        rows = self.results.accuracy[: task + 1]
        self.log.scalar("final_accuracy", metrics.final_accuracy(rows), task)
        self.log.scalar("forgetting", metrics.forgetting(rows), task)

    def keep(self, learner: Learner, task: int) -> None:
        """Keep a part of the finished task for replay; the ranks write it together."""
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
        """The rows of a task to keep, all of which decode."""
        replay, seed = self.config.replay, self.config.train.seed
        bad = np.empty(0, dtype=np.int64)
        while True:
            rows = choose(split, replay.fraction, replay.select, seed, task, features, bad)
            checked = partial(self.progress, "check replay")
            found = self.bad_samples.undecodable(split, rows, checked)
            if len(found) == 0:
                return rows
            bad = np.concatenate([bad, found])
