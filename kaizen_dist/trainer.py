"""The loop over tasks, epochs and steps.

`train` takes a configuration, a stream and a folder, and leaves a finished run there; called
again on a folder that holds an unfinished run of the same configuration, it goes on where
the last checkpoint stands.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

from kaizen_dist import run as run_folder
from kaizen_dist.config import Config
from kaizen_dist.engine import checkpoint
from kaizen_dist.engine.ddp import DDPEngine
from kaizen_dist.engine.process import Process
from kaizen_dist.errors import KaizenError
from kaizen_dist.evaluation.evaluator import Evaluator
from kaizen_dist.evaluation.results import Results
from kaizen_dist.journal import Journal, StepMeter
from kaizen_dist.learner.learner import Learner, Losses
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.replay import ReplayStore, choose
from kaizen_dist.views.loader import Batch, Loader


def train(config: Config, stream: Stream, run: Path, process: Process) -> Results:
    """Train on every task of a stream; the results of the finished run, on every rank.

    Raises:
        UsageError: if configuration, stream, folder and world size do not fit together.
        DataError: if an image cannot be read.
        WriteError: if the folder cannot be written.
        KaizenError: if the loss is no longer a number.
    """
    run_folder.check(config, stream, process.world_size)
    run_folder.check_folder(run, config, stream)
    process.barrier()
    if process.main:
        run_folder.create(run, config, stream)
    process.barrier()
    return Trainer(config, stream, run, process).loop()


class Trainer:
    """Everything a run has in hand. `loop` is the story; its words are explained below it."""

    def __init__(self, config: Config, stream: Stream, run: Path, process: Process) -> None:
        self.config, self.stream, self.run, self.process = config, stream, run, process
        resumed, self.results = run_folder.restore(run, config, stream, process.world_size)
        self.cursor = resumed.cursor if resumed else run_folder.Cursor()
        self.optimizer_state = resumed.optimizer if resumed else None
        self.learner = Learner(config, stream.num_classes, process)
        if resumed:
            # Make the teacher's place, if there is one to come back.
            self.learner.begin_task(
                first=not any(n.startswith("teacher.") for n in resumed.learner)
            )
            self.learner.load_state_dict(resumed.learner)
        self.engine = DDPEngine(config, self.learner, process)
        self.journal = Journal(run, process.main, (self.cursor.task, self.cursor.step))
        self.meter = StepMeter()
        self.note = ""
        self.evaluator = Evaluator(config, stream, process, self.journal.progress)
        self.store = ReplayStore(run)
        self.began = time.monotonic() - self.cursor.wall_seconds

    def loop(self) -> Results:
        with self.journal:
            self.open()
            for task in range(self.cursor.task, len(self.stream)):
                loader = self.begin(task)
                for batch in self.batches(loader):
                    losses = self.engine.step(batch, self.cursor.step)
                    self.advance(loader.order, losses)
                    if self.save_due():
                        self.save()
                self.evaluate(task)
                self.admit(task)
                self.next_task(task)
            return self.results

    def named(self, task: int) -> str:
        """A task for the person who watches: counted from 1, as on the page."""
        return f"task {task + 1}/{len(self.stream)}"

    def open(self) -> None:
        """Say where the run stands; measure the untrained backbone before a first step."""
        if self.results.finished:
            self.journal.say(f"{self.run} is finished; nothing to do")
        elif self.cursor.images:
            self.journal.say(
                f"resuming {self.run} at step {self.cursor.step} of {self.named(self.cursor.task)}"
            )
        elif self.config.eval.forward_transfer:
            later = range(1, len(self.stream))
            random = [self.evaluator.probe(self.learner, task) for task in later]
            self.results.probe_random = [None, *random]
            self.results.probe_before = [None] * len(self.stream)
        if self.process.main:
            self.results.write(self.run)

    def begin(self, task: int) -> Loader:
        """Order, loader and engine for a task; the teacher is taken here, at its first step."""
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
        self.engine.begin_task(
            task, order.steps_per_epoch, self.total_steps, take_teacher=self.cursor.step == 0
        )
        if self.optimizer_state is not None:
            self.engine.optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        names = ", ".join(self.results.task_classes[task])
        self.journal.say(
            f"{self.named(task)}: {len(split):,} images of {_shorten(names)}; "
            f"{self.total_steps:,} steps, {sum(order.replay_sizes):,} images replayed"
        )
        lanes = lanes_of_rank(config.lanes, self.process.rank, self.process.world_size)
        return Loader(order, splits, config.views, lanes, self.process.device)

    def batches(self, loader: Loader) -> Iterator[Batch]:
        """The task's batches from the cursor on; the time spent waiting for each is noted."""
        per_epoch = loader.order.steps_per_epoch
        coming = (divmod(step, per_epoch) for step in range(self.cursor.step, self.total_steps))
        batches = loader.batches(coming)
        self.meter.restart()
        while True:
            with self.meter.waiting():
                batch = next(batches, None)
            if batch is None:
                return
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
            "time": time.time(),
        }
        self.journal.event(row, self.cursor.images // self.config.train.batch_size)
        self.note = f"loss {values['loss']:.3f}  {speed:.0f} images/s  data wait {waited:.0%}"

    def save_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        return every > 0 and self.cursor.step % every == 0 and self.cursor.step < self.total_steps

    def save(self) -> None:
        """A checkpoint at the cursor. Between two tasks there is no optimizer to keep."""
        self.engine.settle()
        self.cursor.wall_seconds = time.monotonic() - self.began
        within = self.cursor.step > 0
        if self.process.main:
            run_folder.save(
                self.run,
                self.cursor,
                self.learner.state_dict(),
                self.engine.optimizer.state_dict() if within else None,
                self.results,
            )
        self.process.barrier()

    def evaluate(self, task: int) -> None:
        """Measure all that was learnt, and what it gives the task to come."""
        self.engine.settle()
        accuracy, knn = self.evaluator.accuracies(self.learner, task)
        self.results.accuracy.append(accuracy)
        self.results.knn.append(knn)
        if self.config.eval.forward_transfer and task + 1 < len(self.stream):
            self.results.probe_before[task + 1] = self.evaluator.probe(self.learner, task + 1)
        self.results.update_metrics()
        self.journal.scalar("final_accuracy", self.results.final_accuracy, task)
        self.journal.scalar("forgetting", self.results.forgetting, task)
        known = ", ".join("-" if a is None else f"{a:.3f}" for a in accuracy)
        self.journal.say(f"after {self.named(task)}: accuracy on each {known}")

    def admit(self, task: int) -> None:
        """Keep a part of the finished task; the ranks write it together."""
        replay = self.config.replay
        if replay.fraction == 0:
            return
        split = self.stream.split(task, "train")
        herding = replay.select == "herding"
        features = self.evaluator.features(self.learner, split) if herding else None
        rows = choose(split, replay.fraction, replay.select, self.config.train.seed, task, features)
        if self.process.main:
            self.store.discard_unfinished(task)
        self.process.barrier()
        self.store.write_shards(task, split, rows, self.process.rank, self.process.world_size)
        self.process.barrier()
        if self.process.main:
            self.store.commit(task, len(rows))
        self.process.barrier()

    def next_task(self, task: int) -> None:
        """Close the books on a task: cursor, checkpoint, results."""
        self.cursor.task, self.cursor.step = task + 1, 0
        results = self.results
        results.images_per_second = self.cursor.images / max(self.cursor.train_seconds, 1e-9)
        results.wall_seconds = time.monotonic() - self.began
        if self.cursor.task == len(self.stream):
            results.finished = True
            results.state_sha256 = checkpoint.digest(self.learner.state_dict())
        self.save()
        if self.process.main:
            results.write(self.run)


def _shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
