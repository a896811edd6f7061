"""The loop over tasks, epochs and steps."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from textwrap import shorten

from kaizen_dist.common.errors import DivergedError, Preempted
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.distributed.preemption import Preemption
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.base import digest
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.engine.checkpoint.writer import CheckpointWriter
from kaizen_dist.engine.divergence import all_finite, explained
from kaizen_dist.learner.terms import Losses
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.runs import resume
from kaizen_dist.runs.known_classes import known_classes
from kaizen_dist.runs.results import Results
from kaizen_dist.runs.saved_models import write_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order
from kaizen_dist.stream.prefetch import fetch_ahead
from kaizen_dist.training.bad_sample_log import BadSampleLog
from kaizen_dist.training.growth import grown, tasks_to_learn, what_came
from kaizen_dist.training.run_log import RunLog, StepMeter
from kaizen_dist.training.start import learner_of_run
from kaizen_dist.training.task_data import task_loader
from kaizen_dist.training.task_end import TaskEnd
from kaizen_dist.views.choose import resolve
from kaizen_dist.views.loader import Batch, Loader


class Trainer:
    """The parts of a run; `loop` is the training, its steps are the methods below it."""

    def __init__(
        self,
        config: Config,
        stream: Stream,
        run: Path,
        context: RankContext,
        log: RunLog,
        resumed: resume.Resumed | None,
        until: int | None,
        follow: float | None,
    ) -> None:
        self.until, self.follow = until, follow
        self.config, self.stream, self.run, self.context = config, stream, run, context
        self.log, self.resumed = log, resumed
        self.cursor = resumed.cursor if resumed else resume.Cursor.beginning()
        self.results = resumed.results if resumed else resume.fresh_results(config, stream, context)
        # As it was before the task that comes now, which begins with a copy of it.
        known = known_classes(config, stream, self.cursor.task - 1, self.results.late_labels)
        begun = self.results if resumed is None else None
        make = partial(learner_of_run, config, known.count, context, begun, log.say)
        self.engine = engine_class(config.parallel.engine)(config, make, context)
        self.saver = CheckpointWriter(run, config.checkpoint, context)
        self.preemption = Preemption(context, config.checkpoint.grace_seconds)
        self.bad_samples = BadSampleLog(context)
        parts = config, stream, run, context, log, self.bad_samples, self.results
        self.task_end = TaskEnd(*parts, self.preemption.check)
        self.meter = StepMeter(context.device)
        self.note = ""
        self.began = time.monotonic() - self.cursor.wall_seconds

    def loop(self, loader: Loader | None) -> Results:
        """Train from the task that has begun on; `loader` is its loader, None where the next task
        has not come yet."""
        divergence = explained(self.run, self.context, self.config.optim.lr)
        position = self.cursor.task, self.cursor.step
        with divergence, self.log.open(*position), self.saver, self.preemption:
            self.open()
            while True:
                loader = loader or self.wait_for_task()
                task = self.cursor.task
                if not self.cursor.within_task:
                    self.task_end.measure_before(self.engine.learner, task)
                self.announce(loader)
                for batch in self.batches(loader):
                    losses = self.engine.step(batch, self.cursor.step)
                    self.advance(loader.order, losses)
                    if self.save_due():
                        self.save()
                    if self.preemption.asked():
                        self.stop()
                self.evaluate(task)
                self.next_task(task)
                self.look_for_tasks()
                if self.learnt_all and self.follow is None:
                    return self.results
                loader = None if self.learnt_all else self.begin()

    @property
    def learnt_all(self) -> bool:
        """Whether there is no task left to learn."""
        return self.cursor.task >= tasks_to_learn(self.stream, self.until)

    @property
    def at_work(self) -> str:
        """The current task, for messages."""
        return self.task_end.named(self.cursor.task)

    def open(self) -> None:
        """Report where the run resumes."""
        results, backend = self.results, resolve(self.config.views.backend)
        if self.cursor.images:
            self.log.say(f"resuming {self.run} at step {self.cursor.step} of {self.at_work}")
            if results.views_backend not in (None, backend):
                self.log.say(
                    f"views.backend: {results.views_backend} made the views so far, {backend} makes"
                    " them from here on; they are equal up to rounding"
                )
        results.views_backend, results.world_size = backend, self.context.world_size
        results.config_sha256 = self.config.sha256
        resume.take_up(results, self.stream)
        for done in range(len(results.accuracy)):
            self.task_end.chart(done)
        if self.context.main:
            results.write(self.run)

    def begin(self) -> Loader:
        """Loader and engine for a task, at its first step or where a checkpoint stands; the teacher
        is taken at the first step."""
        config, context, task = self.config, self.context, self.cursor.task
        replayed = self.task_end.replayed
        own = context.rank, context.world_size, context.device, self.results.replay_order
        loader = task_loader(config, self.stream, task, replayed, *own)
        per_epoch = loader.order.steps_per_epoch
        limits = config.train.epochs * per_epoch, config.train.max_steps
        self.total_steps = min(steps for steps in limits if steps is not None)
        resumed, self.resumed = self.resumed, None
        if resumed and not self.cursor.within_task:
            self.engine.restore(resumed.folder, within_task=False)
        if not self.cursor.within_task:
            resume.begin_task(self.results, self.stream, task)
        classes = known_classes(config, self.stream, task, self.results.late_labels)
        self.engine.begin_task(task, per_epoch, self.total_steps, classes)
        if resumed and self.cursor.within_task:
            # Restores the teacher taken at the task's first step, over the one just made.
            self.engine.restore(resumed.folder, within_task=True)
        self.bad_samples.begin(loader.bad_samples)
        return loader

    def announce(self, loader: Loader) -> None:
        """Report the task's size and classes."""
        order = loader.order
        classes = ", ".join(self.results.task_classes[order.task]) or "no known class"
        names = shorten(classes, 60, placeholder=" ...")
        self.log.say(
            f"{self.task_end.named(order.task)}: {order.size:,} images of {names}; "
            f"{self.total_steps:,} steps, {sum(order.replay_sizes):,} images replayed"
        )

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
            self.bad_samples.note(batch)
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
        self.log.progress(self.at_work, self.cursor.step, self.total_steps, self.note, "steps")

    def record(self, step: int, epoch: int, losses: Losses) -> None:
        """A row for events.jsonl. Reading the losses waits for the device, so not every step."""
        self.check_finite()
        values = self.engine.report(losses)
        speed, waited, seconds = self.meter.read()
        self.cursor.train_seconds += seconds
        row = {
            "task": self.cursor.task,
            "epoch": epoch,
            "step": step,
            **values,
            "lr": self.engine.lr,
            "images_per_second": speed,
            "data_wait": waited,
            "checkpoint_stall": self.saver.read_stall(),
            "replaced": self.bad_samples.replaced(),
            "time": time.time(),
        }
        self.log.event(row)
        self.note = f"loss {values['loss']:.3f}  {speed:.0f} images/s  data wait {waited:.0%}"

    def check_finite(self) -> None:
        """Check that every loss so far was finite; all ranks together. It waits for the device.

        Raises:
            DivergedError: on all ranks.
        """
        step = self.engine.first_bad.read()
        if step is not None:
            where = f"step {step} of {self.at_work}"
            raise DivergedError(f"the loss is not finite at {where}", (self.cursor.task, step))

    def save_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        # Also before the evaluation, so that a stop in it costs no step.
        return (every > 0 and self.cursor.step % every == 0) or self.cursor.step == self.total_steps

    def save(self) -> None:
        """A checkpoint at the cursor, written while training goes on."""
        self.check_finite()
        self.engine.settle()
        cursor = self.cursor
        cursor.wall_seconds = time.monotonic() - self.began
        document = resume.state_of(
            self.run, cursor, self.results, self.config, self.stream, self.context
        )
        name = layout.name_of(cursor.task, cursor.step)
        self.saver.save(name, lambda: self.engine.snapshot(cursor.within_task), document)

    def stop(self) -> None:
        """After a signal: save this step, and end."""
        if not self.save_due():
            self.save()
        self.saver.wait()
        self.context.barrier()
        where = f"step {self.cursor.step} of {self.at_work}"
        raise Preempted(f"stopped by {self.preemption.reason} at {where}, with all saved")

    def evaluate(self, task: int) -> None:
        """Evaluate the model, and keep a part of the task for replay."""
        # Not before it is known to be finite.
        self.saver.wait()
        self.engine.settle()
        self.task_end.measure(self.engine.learner, task)
        self.task_end.keep(self.engine.learner, task)

    def next_task(self, task: int) -> None:
        """Finish a task: cursor, model, checkpoint, results."""
        self.cursor.task, self.cursor.step = task + 1, 0
        results = self.results
        results.images_per_second = self.cursor.images / max(self.cursor.train_seconds, 1e-9)
        results.wall_seconds = time.monotonic() - self.began
        if self.cursor.task == len(self.stream):
            results.finished = True
            results.state_sha256 = digest(self.engine.full_state())
        student = self.engine.student()
        if not all_finite(student.values()):
            raise DivergedError(f"the model after {self.task_end.named(task)} is not finite")
        if self.context.main:
            classes = self.engine.learner.num_classes
            write_model(self.run, task, student, self.stream, classes)
        self.save()
        if self.context.main:
            results.write(self.run)

    def wait_for_task(self) -> Loader:
        """Look for the next task every `follow` seconds, until it has come; its loader."""
        assert self.follow is not None
        self.log.say(f"waiting for the next task of {self.stream.place}")
        # Counted, not timed: each look at the signals is one of all ranks.
        pauses = max(1, round(self.follow))
        while self.learnt_all:
            for _ in range(pauses):
                if self.preemption.asked():
                    raise Preempted(f"stopped by {self.preemption.reason}, with all saved")
                time.sleep(self.follow / pauses)
            self.look_for_tasks()
        return self.begin()

    def look_for_tasks(self) -> None:
        """Take up the tasks and labels that the stream has got since it was opened, on all ranks.

        Raises:
            UsageError: if the configuration does not fit them.
            DataError: if a rank does not see them, or the stream is another one now.
        """
        stream = grown(self.stream, self.config, self.context, self.log.say).by_all_labels()
        if not (news := what_came(self.stream, stream)):
            return
        run_folder.check(self.config, stream, self.context.world_size)
        run_folder.check_classes(self.run, self.config, self.results, stream)
        self.log.say(news)
        self.stream = stream
        self.task_end.take_up(stream)
        resume.take_up(self.results, stream)
        if self.context.main:
            self.results.write(self.run)
