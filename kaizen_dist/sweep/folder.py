"""The folder of a sweep, and where each of its runs stands.

    OUT/runs.yaml                  what was asked for: every run, and what it varies
    OUT/streams/NAME/              the streams that it prepared
    OUT/configs/VARIANT/seed-N.yaml    the configuration of a run
    OUT/runs/VARIANT/seed-N/       the run itself, as `train` leaves it
    OUT/logs/VARIANT/seed-N.log    all that it said
    OUT/locks/VARIANT/seed-N       held while it runs
    OUT/sweep.csv, summary.csv, summary.md, report.html, figures/

Whether a run is finished is read from its own results, never from a record beside them: so a
sweep that is killed at any moment has each run once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.common.locks import alone
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.sweep.executors import Job
from kaizen_dist.sweep.spec import Preparation, Run, Sweep

FILE = "runs.yaml"


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did not finish."""

    exit_code: int
    error: str
    """The last thing it said of it."""


class SweepFolder:
    """Places by name; `sweep` is what is asked for."""

    def __init__(self, root: Path, sweep: Sweep) -> None:
        self.root, self.sweep = root, sweep

    def check(self) -> None:
        """That the folder is new, empty, or holds a sweep.

        Raises:
            UsageError: if it holds something else.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--out {self.root} is a file; name a folder")
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / FILE).exists():
            raise UsageError(
                f"--out {self.root} is not empty and holds no sweep; name another folder"
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the folder, write down what is asked for, and keep other sweeps out.

        Raises:
            UsageError: if another sweep works in it.
            WriteError: if it cannot be written.
        """
        busy = (
            f"--out {self.root}: another sweep works in this folder; wait for it, stop it, or name "
            "another folder"
        )
        with alone(self.root / ".lock", busy):
            atomic_write(self.root / FILE, self._written().encode())
            yield

    def _written(self) -> str:
        """What is asked for, as YAML for people."""
        runs = {
            run.name: {
                "varied": run.varied,
                "seed": run.seed,
                "stream": run.preparation.model_dump(mode="json") if run.preparation else None,
                "config_sha256": run.config.sha256,
            }
            for run in self.sweep.runs
        }
        return yaml.safe_dump({"title": self.sweep.title, "runs": runs}, sort_keys=False)

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.root / "runs" / run.name

    def preparation(self, run: Run, given: str | None) -> Preparation | None:
        """How the stream of a run is made; None: it is the `given` one.

        Raises:
            UsageError: if there is neither.
        """
        if given is not None and not run.own_stream:
            return None
        if run.preparation is None:
            raise UsageError("name the stream with --stream, or say `prepare:` in the sweep")
        return run.preparation

    def stream(self, preparation: Preparation) -> Path:
        """Where a stream is to be made."""
        return self.root / "streams" / preparation.name

    def job(self, run: Run, stream: str) -> Job:
        """The command of a run; writes its configuration.

        Raises:
            WriteError: if that cannot be written.
        """
        file = self.root / "configs" / f"{run.name}.yaml"
        make_folder(file.parent)
        atomic_write(file, run.config.to_yaml().encode())
        return Job(
            name=run.name,
            config=run.config,
            file=file,
            stream=stream,
            out=self.run(run),
            log=self.root / "logs" / f"{run.name}.log",
            lock=self.root / "locks" / run.name,
        )

    def results(self, run: Run) -> Results | None:
        """What a run has measured so far, if anything.

        Raises:
            DataError: if its results are broken.
        """
        return read_results(self.run(run))

    def finished(self, run: Run) -> bool:
        """Whether nothing of a run is left to do."""
        results = self.results(run)
        return results is not None and results.finished

    def problems(self, run: Run, stream: Stream, world_size: int) -> list[str]:
        """All that can be known to be wrong about a run before it starts."""
        try:
            run_folder.check(run.config, stream, world_size)
            run_folder.check_folder(self.run(run), run.config, stream)
        except UsageError as error:
            return [f"{run.name}: {error}"]
        return []
