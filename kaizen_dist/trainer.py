"""The loop over tasks, epochs and steps.

`train` takes a configuration, a stream and a folder, and leaves a finished run there; called
again on a folder that holds an unfinished run of the same configuration, it goes on where
the last checkpoint stands.
"""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist import run as run_folder
from kaizen_dist import state
from kaizen_dist.agreement import agree
from kaizen_dist.config import Config
from kaizen_dist.deploy.models import write_model
from kaizen_dist.engine import checkpoint, engine_class
from kaizen_dist.engine.base import digest
from kaizen_dist.engine.preemption import Preemption
from kaizen_dist.engine.process import Process
from kaizen_dist.engine.saver import Saver
from kaizen_dist.errors import KaizenError, Preempted
from kaizen_dist.evaluation import class_means
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.evaluation.results import Results, fresh_results
from kaizen_dist.faultlog import FaultLog
from kaizen_dist.journal import Journal, StepMeter
from kaizen_dist.learner.learner import Learner, Losses
from kaizen_dist.stream.ahead import fetch_ahead
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay import ReplayStore, choose
from kaizen_dist.stream.shards import Split
from kaizen_dist.views.loader import Batch, Loader


def train(
    config: Config,
    stream: Stream,
    run: Path,
    process: Process,
    allow_changes: bool = False,
    until: int | None = None,
) -> Results:
    """Train on every task of a stream, or on the first `until`; the results so far, on every rank.

    With `allow_changes` a run in the folder goes on under this configuration, whatever its own.

    Raises:
        UsageError: if configuration, stream, folder and world size do not fit together, or
            another process trains in the folder; or if ranks differ.
        DataError: if an image cannot be read.
        WriteError: if the folder cannot be written.
        KaizenError: if the loss is no longer a number.
        Preempted: if a signal asked to stop; everything is saved.
    """
    agree(config, stream, process, until=until, allow=allow_changes)
    run_folder.check(config, stream, process.world_size)
    run_folder.check_folder(run, config, stream, allow_changes)
    journal = Journal(run, process.main)
    with run_folder.occupied(run, process, journal.say):
        process.barrier()
        resumed = state.restore(run, config, stream, process, journal.say, allow_changes)
        process.barrier()
        if process.main:
            run_folder.create(run, config, stream)
        process.barrier()
        return Trainer(config, stream, run, process, journal, resumed, until).loop()


class Trainer:
    """Everything a run has in hand. `loop` is the story; its words are explained below it."""

    def __init__(
        self,
        config: Config,
        stream: Stream,
        run: Path,
        process: Process,
        journal: Journal,
        resumed: state.Resumed | None,
        until: int | None,
    ) -> None:
        self.until = len(stream) if until is None else min(until, len(stream))
        self.config, self.stream, self.run, self.process = config, stream, run, process
        self.journal, self.resumed = journal, resumed
        self.cursor = resumed.cursor if resumed else state.Cursor()
        self.results = resumed.results if resumed else fresh_results(config, stream, process)
        self.engine = engine_class(config.parallel.engine)(
            config, lambda: Learner(config, stream.num_classes, process), process
        )
        self.store = ReplayStore(run)
        self.saver = Saver(run, config.checkpoint, process, journal.say)
        self.preemption = Preemption(process, config.checkpoint.grace_seconds)
        self.faults = FaultLog(process, self.journal.warn)
        self.evaluator = Evaluator(config, stream, process, self.progress, self.faults.tell)
        self.meter = StepMeter()
        self.note = ""
        self.began = time.monotonic() - self.cursor.wall_seconds

    def loop(self) -> Results:
        position = self.cursor.task, self.cursor.step, self.global_step
        with self.journal.open(*position), self.saver, self.preemption:
            self.open()
            for task in range(self.cursor.task, self.until):
                loader = self.begin(task)
                for batch in self.batches(loader):
                    losses = self.engine.step(batch, self.cursor.step)
                    self.advance(loader.order, losses)
                    if self.save_due():
                        self.save()
                    if self.preemption.asked():
                        self.stop()
                self.evaluate(task)
                self.admit(task)
                self.next_task(task)
            return self.results

    @property
    def global_step(self) -> int:
        """Steps taken in all tasks."""
        return self.cursor.images // self.config.train.batch_size

    def named(self, task: int) -> str:
        """A task for the person who watches: counted from 1, as on the page."""
        return f"task {task + 1}/{len(self.stream)}"

    def open(self) -> None:
        """Say where the run stands; measure the untrained backbone before a first step."""
        if self.results.finished:
            self.journal.say(f"{self.run} is finished; nothing to do")
        elif self.cursor.task >= self.until:
            self.journal.say(f"{self.run} has learnt {self.until} tasks already; nothing to do")
        elif self.cursor.images:
            self.journal.say(
                f"resuming {self.run} at step {self.cursor.step} of {self.named(self.cursor.task)}"
            )
        elif self.config.eval.forward_transfer:
            later = range(1, len(self.stream))
            random = [self.evaluator.probe(self.engine.learner, task) for task in later]
            self.results.probe_random = [None, *random]
            self.results.probe_before = [None] * len(self.stream)
        if self.process.main:
            self.results.write(self.run)

    def begin(self, task: int) -> Loader:
        """Order, loader and engine for a task; its teacher is taken here, at its first step."""
        config = self.config
        split = self.stream.split(task, "train")
        past = range(task) if config.replay.fraction > 0 else ()
        splits = {t: self.store.split(t) for t in past} | {task: split}
        order = Order(
            seed=config.train.seed,
            task=task,
            size=len(split),
            batch_size=config.train.batch_size,
            lanes=config.lanes,
            replay_sizes=tuple(len(splits[t]) for t in past),
            replay_batch_size=config.replay.batch_size,
        )
        self.total_steps = config.train.epochs * order.steps_per_epoch
        if config.train.max_steps is not None:
            self.total_steps = min(self.total_steps, config.train.max_steps)
        self.begin_engine(task, order)
        names = ", ".join(self.results.task_classes[task])
        self.journal.say(
            f"{self.named(task)}: {len(split):,} images of {_shorten(names)}; "
            f"{self.total_steps:,} steps, {sum(order.replay_sizes):,} images replayed"
        )
        lanes = lanes_of_rank(config.lanes, self.process.rank, self.process.world_size)
        loader = Loader(order, splits, config.views, lanes, self.process.device)
        self.faults.begin(loader.faults)
        return loader

    def begin_engine(self, task: int, order: Order) -> None:
        """The engine at the task's first step, or where a checkpoint stands."""
        resumed, self.resumed = self.resumed, None
        if resumed and not self.cursor.within_task:
            self.engine.restore(resumed.folder, within_task=False)
        self.engine.begin_task(task, order.steps_per_epoch, self.total_steps)
        if resumed and self.cursor.within_task:
            # Brings the teacher that was taken at the task's first step, over the one just made.
            self.engine.restore(resumed.folder, within_task=True)

    def batches(self, loader: Loader) -> Iterator[Batch]:
        """The task's batches from the cursor on; the time spent waiting for each is noted."""
        per_epoch = loader.order.steps_per_epoch
        coming = (divmod(step, per_epoch) for step in range(self.cursor.step, self.total_steps))
        ahead = fetch_ahead(loader.order, loader.splits, loader.lanes, coming)
        batches = loader.batches(ahead)
        self.meter.restart()
        while True:
            with self.meter.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            self.faults.note(batch)
            yield batch

    def advance(self, order: Order, losses: Losses) -> None:
        """Move the cursor past a step; record it if it is one that is logged."""
        step, images = self.cursor.step, self.config.train.batch_size
        self.cursor.step += 1
        self.cursor.images += images
        self.meter.images += images
        last = self.cursor.step == self.total_steps
        if step % self.config.log.every_steps == 0 or last:
            self.record(step, step // order.steps_per_epoch, losses)
        named = self.named(self.cursor.task)
        self.journal.progress(named, self.cursor.step, self.total_steps, self.note)

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass on how far the evaluation is; a place to stop that needs no save."""
        self.journal.progress(what, done, total)
        self.preemption.check()

    def record(self, step: int, epoch: int, losses: Losses) -> None:
        """A row for events.jsonl. Reading the losses waits for the device, so not every step."""
        values = self.engine.report(losses)
        speed, waited, seconds = self.meter.read()
        self.cursor.train_seconds += seconds
        if not math.isfinite(values["loss"]):
            raise KaizenError(
                f"the loss is {values['loss']} at step {step} of {self.named(self.cursor.task)}; "
                f"a lower optim.lr (now {self.config.optim.lr}) or a longer warm-up mostly cures it"
            )
        row = {
            "task": self.cursor.task,
            "epoch": epoch,
            "step": step,
            **values,
            "lr": self.engine.lr,
            "images_per_second": speed,
            "data_wait": waited,
            "checkpoint_stall": self.saver.read_stall(),
            "replaced": self.faults.replaced(),
            "time": time.time(),
        }
        self.journal.event(row, self.global_step)
        self.note = f"loss {values['loss']:.3f}  {speed:.0f} images/s  data wait {waited:.0%}"

    def save_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        # Also before the evaluation, so that a stop in it costs no step.
        return (every > 0 and self.cursor.step % every == 0) or self.cursor.step == self.total_steps

    def save(self) -> None:
        """A checkpoint at the cursor, written while training goes on."""
        self.engine.settle()
        cursor = self.cursor
        cursor.wall_seconds = time.monotonic() - self.began
        document = state.state_of(
            self.run, cursor, self.results, self.config, self.stream, self.process
        )
        name = checkpoint.name_of(cursor.task, cursor.step)
        self.saver.save(name, lambda: self.engine.snapshot(cursor.within_task), document)

    def stop(self) -> None:
        """A signal was heard: save this step, and leave."""
        if not self.save_due():
            self.save()
        self.saver.wait()
        self.process.barrier()
        where = f"step {self.cursor.step} of {self.named(self.cursor.task)}"
        raise Preempted(f"stopped by {self.preemption.reason} at {where}, with all saved")

    def evaluate(self, task: int) -> None:
        """Measure all that was learnt, and what it gives the task to come."""
        self.engine.settle()
        self.align(task)
        learner = self.engine.learner
        if learner.class_means is not None:
            past = range(task if self.config.replay.fraction > 0 else 0)
            replayed = [self.store.split(t) for t in past]
            class_means.update(self.evaluator, learner, self.stream.split(task, "train"), replayed)
        accuracy, knn = self.evaluator.accuracies(learner, task)
        self.results.accuracy.append(accuracy)
        self.results.knn.append(knn)
        if self.results.ncm is not None:
            self.results.ncm.append(self.evaluator.nearest_mean(learner, task))
        if self.config.eval.forward_transfer and task + 1 < len(self.stream):
            self.results.probe_before[task + 1] = self.evaluator.probe(learner, task + 1)
        self.results.update_metrics()
        self.journal.scalar("final_accuracy", self.results.final_accuracy, task)
        self.journal.scalar("forgetting", self.results.forgetting, task)
        known = ", ".join("-" if a is None else f"{a:.3f}" for a in accuracy)
        self.journal.say(f"after {self.named(task)}: accuracy on each {known}")

    def align(self, task: int) -> None:
        """Bring the classifier's weights of new classes to the size of the others'."""
        if self.config.classifier.align_weights:
            before = {c for info in self.stream.tasks[:task] for c in info.classes}
            new = set(self.stream.tasks[task].classes) - before
            self.engine.learner.align_classifier(sorted(before), sorted(new))

    def admit(self, task: int) -> None:
        """Keep a part of the finished task; the ranks write it together."""
        replay = self.config.replay
        if replay.fraction == 0:
            return
        split = self.stream.split(task, "train")
        herding = replay.select == "herding"
        features = self.evaluator.features(self.engine.learner, split) if herding else None
        rows = self.choose(task, split, features)
        if self.process.main:
            self.store.discard_unfinished(task)
        self.process.barrier()
        self.store.write_shards(task, split, rows, self.process.rank, self.process.world_size)
        self.process.barrier()
        if self.process.main:
            self.store.commit(task, len(rows))
        self.process.barrier()

    def choose(
        self, task: int, split: Split, features: NDArray[np.floating] | None
    ) -> NDArray[np.int64]:
        """The rows of a task to keep; all of them decode, whatever training has met."""
        replay, seed = self.config.replay, self.config.train.seed
        bad = np.empty(0, dtype=np.int64)
        while True:
            rows = choose(
                split, replay.fraction, replay.select, seed, task, features, bad, replay.balance
            )
            found = self.faults.undecodable(split, rows, partial(self.progress, "check replay"))
            if len(found) == 0:
                return rows
            bad = np.concatenate([bad, found])

    def next_task(self, task: int) -> None:
        """Close the books on a task: cursor, checkpoint, results."""
        self.cursor.task, self.cursor.step = task + 1, 0
        results = self.results
        results.images_per_second = self.cursor.images / max(self.cursor.train_seconds, 1e-9)
        results.wall_seconds = time.monotonic() - self.began
        if self.cursor.task == len(self.stream):
            results.finished = True
            results.state_sha256 = digest(self.engine.full_state())
        student = self.engine.student()
        if self.process.main:
            write_model(self.run, task, student, self.stream)
        self.save()
        if self.process.main:
            results.write(self.run)


def _shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
