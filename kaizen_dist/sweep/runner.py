"""Runs a sweep: what is missing is run, what is there is left alone, what fails is kept.

In come a sweep, a stream and a place, out come a folder of runs and its tables. Killed at any
moment and started again, it goes on: each run resumes from its checkpoint, a finished one is
never repeated, and one that an earlier sweep left behind alive is waited for.
"""

import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kaizen_dist.common.console import PlainConsole
from kaizen_dist.common.errors import Interrupted, Preempted, UsageError
from kaizen_dist.common.formatting import duration, fraction, plural
from kaizen_dist.distributed import signals
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.sweep.executors import Job, Place, Running
from kaizen_dist.sweep.folder import Outcome, SweepFolder
from kaizen_dist.sweep.reuse import adopt
from kaizen_dist.sweep.spec import Preparation, Run, Sweep
from kaizen_dist.sweep.table import write_tables

POLL_SECONDS = 0.2
SAY_SECONDS = 60.0
"""How often the runs that are going are named."""


def run_sweep(
    sweep: Sweep, given: str | None, out: Path, place: Place, reuse: Sequence[Path] = ()
) -> dict[str, Outcome]:
    """Bring every run of a sweep to its end; those that failed, by name.

    `given` takes the place of the stream that the file prepares, except where a run has one of
    its own. A finished run that lies in or beneath a folder of `reuse` is not made again.

    Raises:
        UsageError: before any run, if stream, folder and configurations do not fit together.
        DataError: if a stream is missing or broken.
        WriteError: if the folder cannot be written.
        Interrupted, Preempted: by Ctrl-C, or a signal to stop; every run has saved by then.
    """
    folder = SweepFolder(out, sweep)
    folder.check()
    if wrong := place.problems(folder.root):
        raise UsageError("\n".join(wrong))
    asked = {run.name: folder.preparation(run, given) for run in sweep.runs}
    opened = None if given is None else Stream.open(given)
    with folder.open():
        made = {p: _prepared(folder, p) for p in dict.fromkeys(asked.values()) if p is not None}
        streams: dict[str, Stream] = {}
        for name, preparation in asked.items():
            stream = opened if preparation is None else made[preparation]
            assert stream is not None, "the folder has seen to it"
            streams[name] = stream
        problems = [
            problem
            for run in sweep.runs
            for problem in folder.problems(run, streams[run.name], place.world_size)
        ]
        if problems:
            raise UsageError(f"{len(problems)} run(s) cannot start\n" + "\n".join(problems))
        if reuse:
            adopt(folder, streams, reuse)
        jobs = {run.name: folder.job(run, str(streams[run.name].root)) for run in sweep.runs}
        return Runner(folder, jobs, place).loop()


def _prepared(folder: SweepFolder, preparation: Preparation) -> Stream:
    """A stream of the sweep, made or found."""
    settings = preparation.model_dump(exclude={"source", "domain_order"})
    order = list(preparation.domain_order) if preparation.domain_order else None
    path = folder.stream(preparation)
    return prepare(preparation.source, path, domain_order=order, **settings)


class Runner:
    """What is waiting, what runs, and what failed."""

    def __init__(self, folder: SweepFolder, jobs: dict[str, Job], place: Place) -> None:
        self.folder, self.jobs, self.place = folder, jobs, place
        self.waiting = deque(run for run in folder.sweep.runs if not folder.finished(run))
        self.running: list[tuple[Run, Running, float]] = []
        """And since when."""
        self.failed: dict[str, Outcome] = {}
        self.console = PlainConsole(stderr=True)
        self.signals: list[signal.Signals] = []
        self.said = time.monotonic()

    def loop(self) -> dict[str, Outcome]:
        """Until every run is finished or has failed."""
        total = len(self.folder.sweep.runs)
        self.console.print(f"{total - len(self.waiting)} of {total} runs are finished already")
        with self._hearing():
            write_tables(self.folder, self.failed)
            while (self.waiting or self.running) and not self.signals:
                self._start()
                self._reap()
                self._say_now_and_then()
                time.sleep(POLL_SECONDS)
            if self.signals:
                self._stop()
        return self.failed

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Signals only set a flag; a second one ends the runs at once."""

        def hear(number: int, _: FrameType | None) -> None:
            if self.signals:
                for entry in self.running:
                    entry[1].kill()
            self.signals.append(signal.Signals(number))

        heard = (signal.SIGINT, *signals.SIGNALS)
        before: dict[signal.Signals, Any] = {s: signal.signal(s, hear) for s in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        """As many as the place has room for; a run that is held by another comes again later."""
        for _ in range(len(self.waiting)):
            if len(self.running) >= self.place.capacity or self.signals:
                return
            run = self.waiting.popleft()
            if self.folder.finished(run):
                self._tell(run, "finished by an earlier sweep")
                write_tables(self.folder, self.failed)
                continue
            started = self.place.start(self.jobs[run.name])
            if started is None:
                self.waiting.append(run)
            else:
                self._tell(run, "started")
                self.running.append((run, started, time.monotonic()))

    def _reap(self) -> None:
        """Note what has ended."""
        for entry in list(self.running):
            run, running, began = entry
            code = running.poll()
            if code is None:
                continue
            self.running.remove(entry)
            took = duration(time.monotonic() - began)
            if code == 0 and self.folder.finished(run):
                accuracy = getattr(self.folder.results(run), "final_accuracy", None)
                self._tell(run, f"finished in {took}, FA {fraction(accuracy)}")
            elif code == Preempted.exit_code and not self.signals:
                self._tell(run, "was preempted; it goes on later")
                self.waiting.append(run)
            elif not self.signals:
                error = running.error()
                self.failed[run.name] = Outcome(code, error)
                self._tell(run, f"failed with exit {code}: {error}")
            write_tables(self.folder, self.failed)

    def _stop(self) -> None:
        """Have the runs save, wait for them, and leave as the signal asked."""
        reason = self.signals[0]
        if self.running and self.place.keeps:
            self.console.print(
                f"{reason.name}: {plural(len(self.running), 'run')} left in the queue; the "
                "same command takes them up again, `kaizen-dist cancel` takes them out"
            )
            self.running.clear()
        elif self.running:
            self.console.print(
                f"{reason.name}: {plural(len(self.running), 'run')} told to save and stop; "
                "once more ends them at once"
            )
        for entry in self.running:
            entry[1].stop()
        while self.running:
            self._reap()
            time.sleep(POLL_SECONDS)
        if reason is signal.SIGINT:
            raise Interrupted
        raise Preempted(f"stopped by {reason.name}; the same command goes on")

    def _tell(self, run: Run, what: str) -> None:
        done = len(self.folder.sweep.runs) - len(self.waiting) - len(self.running)
        total = len(self.folder.sweep.runs)
        self.console.print(f"[{done}/{total}] {run.name}: {what}")

    def _say_now_and_then(self) -> None:
        """What is going on, for who looks at a log that says nothing else for hours."""
        if time.monotonic() - self.said < SAY_SECONDS:
            return
        self.said = time.monotonic()
        for run, running, _ in self.running:
            self._tell(run, running.says() or "running")
        if not self.running and self.waiting:
            held = ", ".join(run.name for run in self.waiting)
            self.console.print(f"waiting for what an earlier sweep has left: {held}")
