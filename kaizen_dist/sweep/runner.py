"""Runs a sweep: missing runs are started, finished ones left alone, failures recorded.

A sweep, a stream and an executor give a folder of runs and its tables. Killed at any moment and
started again, it continues: each run resumes from its checkpoint, a finished one is never repeated,
and one that an earlier sweep left behind alive is waited for.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kaizen_dist.common.console import say
from kaizen_dist.common.errors import Interrupted, Preempted, UsageError
from kaizen_dist.common.formatting import duration, fraction, plural
from kaizen_dist.distributed import signals
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.sweep.executors import Executor, RunHandle, SweepJob
from kaizen_dist.sweep.folder import Outcome, SweepFolder
from kaizen_dist.sweep.spec import Preparation, Sweep, SweepRun
from kaizen_dist.sweep.table import write_tables

POLL_SECONDS = 0.2
REPORT_SECONDS = 60.0
"""Interval of messages about the runs in progress."""


def run_sweep(
    sweep: Sweep, given: str | None, out: Path, executor: Executor, reuse: Sequence[Path] = ()
) -> dict[str, Outcome]:
    """Bring every run of a sweep to its end; those that failed, by name.

    `given` takes the place of the stream that the file prepares, except for runs with a stream of
    their own. A finished run in or beneath a folder of `reuse` is linked and not repeated.

    Raises:
        UsageError: before any run, if stream, folder and configurations do not fit together.
        DataError: if a stream is missing or broken.
        WriteError: if the folder cannot be written.
        Interrupted, Preempted: by Ctrl-C, or a signal to stop; every run has saved by then.
    """
    folder = SweepFolder(out, sweep)
    folder.check()
    if wrong := executor.problems(folder.root):
        raise UsageError("\n".join(wrong))
    asked = {run.name: folder.preparation(run, given) for run in sweep.runs}
    known: dict[Preparation | None, Stream] = {} if given is None else {None: Stream.open(given)}
    with folder.open():
        for preparation in dict.fromkeys(asked.values()):
            if preparation is not None:
                known[preparation] = _prepared(folder, preparation)
        streams = {name: known[preparation] for name, preparation in asked.items()}
        problems = [
            problem
            for run in sweep.runs
            for problem in folder.problems(run, streams[run.name], executor.world_size)
        ]
        if problems:
            raise UsageError(f"{len(problems)} run(s) cannot start\n" + "\n".join(problems))
        folder.link_finished(streams, reuse)
        jobs = {run.name: folder.job(run, str(streams[run.name].root)) for run in sweep.runs}
        return SweepRunner(folder, jobs, executor).loop()


def _prepared(folder: SweepFolder, preparation: Preparation) -> Stream:
    """A stream of the sweep, prepared or found."""
    settings = preparation.model_dump(exclude={"source", "domain_order"})
    order = list(preparation.domain_order) if preparation.domain_order else None
    path = folder.root / "streams" / preparation.name
    return prepare(preparation.source, path, domain_order=order, **settings)


class SweepRunner:
    """The runs that wait, that are in progress, and that failed."""

    def __init__(self, folder: SweepFolder, jobs: dict[str, SweepJob], executor: Executor) -> None:
        self.folder, self.jobs, self.executor = folder, jobs, executor
        self.waiting = deque(run for run in folder.sweep.runs if not folder.finished(run))
        self.running: list[tuple[SweepRun, RunHandle, float]] = []
        """And since when."""
        self.failed: dict[str, Outcome] = {}
        self.signals: list[signal.Signals] = []
        self.reported = time.monotonic()

    def loop(self) -> dict[str, Outcome]:
        """Until every run is finished or has failed."""
        total = len(self.folder.sweep.runs)
        say(f"{total - len(self.waiting)} of {total} runs are finished already")
        with self._signals_noted():
            write_tables(self.folder, self.failed)
            while (self.waiting or self.running) and not self.signals:
                self._start()
                self._reap()
                self._report()
                time.sleep(POLL_SECONDS)
            if self.signals:
                self._stop(self.signals[0])
        return self.failed

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Signals are only noted; a second one ends the runs at once."""

        def note(number: int, _: FrameType | None) -> None:
            if self.signals:
                for _run, handle, _began in self.running:
                    handle.kill()
            self.signals.append(signal.Signals(number))

        before: dict[signal.Signals, Any] = {
            number: signal.signal(number, note) for number in (signal.SIGINT, *signals.SIGNALS)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        """Fill the executor; a run that another process still works on is tried again later."""
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.executor.capacity or self.signals:
                return
            run = self.waiting.popleft()
            if self.folder.finished(run):
                self._say(run, "finished by an earlier sweep")
                write_tables(self.folder, self.failed)
            elif (handle := self.executor.start(self.jobs[run.name])) is not None:
                self._say(run, "started")
                self.running.append((run, handle, time.monotonic()))
            else:
                self.waiting.append(run)

    def _reap(self) -> None:
        """Record the runs that have ended."""
        for entry in list(self.running):
            run, handle, began = entry
            code = handle.poll()
            if code is None:
                continue
            self.running.remove(entry)
            if code == 0 and self.folder.finished(run):
                accuracy = getattr(self.folder.results(run), "final_accuracy", None)
                took = duration(time.monotonic() - began)
                self._say(run, f"finished in {took}, FA {fraction(accuracy)}")
            elif code == Preempted.exit_code and not self.signals:
                self._say(run, "was preempted; it resumes later")
                self.waiting.append(run)
            elif not self.signals:
                self.failed[run.name] = Outcome(code, handle.error())
                self._say(run, f"failed with exit {code}: {self.failed[run.name].error}")
            write_tables(self.folder, self.failed)

    def _stop(self, reason: signal.Signals) -> None:
        """Have the runs save, wait for them, and raise as the signal demands."""
        runs = plural(len(self.running), "run")
        if self.running and self.executor.detached:
            say(
                f"{reason.name}: {runs} left in the queue; the same command continues with them, "
                "`kaizen-dist cancel` takes them out"
            )
            self.running.clear()
        elif self.running:
            say(f"{reason.name}: {runs} told to save and stop; a second signal ends them at once")
        for _run, handle, _began in self.running:
            handle.stop()
        while self.running:
            self._reap()
            time.sleep(POLL_SECONDS)
        if reason is signal.SIGINT:
            raise Interrupted
        raise Preempted(f"stopped by {reason.name}; the same command goes on")

    def _report(self) -> None:
        """Now and then a line about every run in progress, for a log that is silent for hours."""
        if time.monotonic() - self.reported < REPORT_SECONDS:
            return
        self.reported = time.monotonic()
        for run, handle, _began in self.running:
            self._say(run, handle.note() or "running")
        if not self.running and self.waiting:
            held = ", ".join(run.name for run in self.waiting)
            say(f"waiting for processes of an earlier sweep: {held}")

    def _say(self, run: SweepRun, what: str) -> None:
        total = len(self.folder.sweep.runs)
        done = total - len(self.waiting) - len(self.running)
        say(f"[{done}/{total}] {run.name}: {what}")
