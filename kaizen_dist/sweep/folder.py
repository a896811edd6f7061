"""The folder of a sweep, and the state of each of its runs.

    OUT/runs.yaml                  the request: every run, and what it varies
    OUT/streams/NAME/              the streams that it prepared
    OUT/configs/VARIANT/seed-N.yaml    the configuration of a run
    OUT/runs/VARIANT/seed-N/       the run itself, as `train` leaves it, or a link to a finished one
    OUT/logs/VARIANT/seed-N.log    its output
    OUT/locks/VARIANT/seed-N       held while it runs
    OUT/sweep.csv, summary.csv, summary.md, report.html, figures/

Whether a run is finished is read from its own results, never from a record beside them: a sweep
that is killed at any moment has each run once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.common.files import atomic_write, make_folder, writing
from kaizen_dist.common.locks import alone
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config, differences, load
from kaizen_dist.launch.status import find_runs
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.sweep.executors import SweepJob
from kaizen_dist.sweep.spec import Preparation, Sweep, SweepRun

FILE = "runs.yaml"


@dataclass(frozen=True)
class Outcome:
    """The end of a run that did not finish."""

    exit_code: int
    error: str


class SweepFolder:
    """The paths of a sweep, and what its runs have left there."""

    def __init__(self, root: Path, sweep: Sweep) -> None:
        self.root, self.sweep = root, sweep

    def check(self) -> None:
        """Accept a folder that is new, empty, or holds a sweep.

        Raises:
            UsageError: if it holds anything else.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--out {self.root} is a file; name a folder")
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / FILE).exists():
            raise UsageError(
                f"--out {self.root} is not empty and holds no sweep; name another folder"
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder, write the request, and keep other sweeps out.

        Raises:
            UsageError: if another sweep works in it.
            WriteError: if it cannot be written.
        """
        busy = (
            f"--out {self.root}: another sweep works in this folder; wait for it, stop it, or name "
            "another folder"
        )
        runs = {
            run.name: {
                "varied": run.varied,
                "seed": run.seed,
                "stream": run.preparation.model_dump(mode="json") if run.preparation else None,
                "config_sha256": run.config.sha256,
            }
            for run in self.sweep.runs
        }
        request = yaml.safe_dump({"title": self.sweep.title, "runs": runs}, sort_keys=False)
        with alone(self.root / ".lock", busy):
            atomic_write(self.root / FILE, request.encode())
            yield

    def run(self, run: SweepRun) -> Path:
        """The folder of a run."""
        return self.root / "runs" / run.name

    def preparation(self, run: SweepRun, given: str | None) -> Preparation | None:
        """How the stream of a run is prepared; None: it is the `given` one.

        Raises:
            UsageError: if there is neither.
        """
        if given is not None and not run.own_stream:
            return None
        if run.preparation is None:
            raise UsageError("name the stream with --stream, or set `prepare:` in the sweep")
        return run.preparation

    def job(self, run: SweepRun, stream: str) -> SweepJob:
        """The job of a run; writes its configuration. Raises WriteError."""
        file = self.root / "configs" / f"{run.name}.yaml"
        make_folder(file.parent)
        atomic_write(file, run.config.to_yaml().encode())
        log, lock = self.root / "logs" / f"{run.name}.log", self.root / "locks" / run.name
        return SweepJob(run.config, file, stream, self.run(run), log, lock)

    def results(self, run: SweepRun) -> Results | None:
        """The results of a run so far; None before its first. Raises DataError."""
        return read_results(self.run(run))

    def finished(self, run: SweepRun) -> bool:
        """Whether all tasks of a run are learnt. Raises DataError."""
        results = self.results(run)
        return results is not None and results.finished

    def problems(self, run: SweepRun, stream: Stream, world_size: int) -> list[str]:
        """Everything that is known to be wrong with a run before it starts."""
        try:
            run_folder.check(run.config, stream, world_size)
            run_folder.check_folder(self.run(run), run.config, stream)
        except UsageError as error:
            return [f"{run.name}: {error}"]
        return []

    def link_finished(self, streams: Mapping[str, Stream], places: Sequence[Path]) -> None:
        """Link runs that are finished in or beneath `places` instead of repeating them.

        A run is the same if its configuration computes the same and its stream (`streams`, by the
        run's name) has the same images in the same order. Runs that the sweep has begun itself are
        left alone.

        Raises:
            DataError: if one of the places is no folder.
            WriteError: if a link cannot be made.
        """
        known = list(_finished(places))
        for run in self.sweep.runs:
            target, fingerprint = self.run(run), streams[run.name].fingerprint
            same = (
                path
                for path, config, theirs in known
                if theirs == fingerprint and not differences(run.config, config)
            )
            if not target.exists() and (found := next(same, None)) is not None:
                make_folder(target.parent)
                with writing(target):
                    # Relative, so that folders moved together still find each other.
                    target.symlink_to(os.path.relpath(found.resolve(), target.parent.resolve()))


def _finished(places: Sequence[Path]) -> Iterator[tuple[Path, Config, str]]:
    """Every finished run, with its configuration and the fingerprint of its stream."""
    for path in (run for place in places for run in find_runs(place)):
        try:
            results = read_results(path)
            if results is not None and results.finished:
                yield path, load(path / CONFIG, stored=True), results.stream.fingerprint
        except KaizenError:
            continue  # what cannot be read is not the same run
