"""Weak and strong scaling: the same training on a growing number of nodes, or of local ranks.

A configuration has the batches of one node (or rank). Weak scaling gives every node such a batch;
strong scaling shares one among them. All counts take turns in rounds, in one place: drift
affects all of them. Each turn is a `bench train` of its own, and at last each count makes
a `bench checkpoint`. The caller says how ranks are started (`Start`).

    OUT/scaling.json, .md, .png     written again after every turn
    OUT/logs/                       output of every turn
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from kaizen_dist.bench import efficiency
from kaizen_dist.bench.result import BenchResult, Row, in_turns
from kaizen_dist.bench.scaling_plan import Case, ScalingPlan, ScalingRequest, check, parse_counts
from kaizen_dist.common.console import say
from kaizen_dist.common.errors import Interrupted
from kaizen_dist.common.files import atomic_write, make_folder
from kaizen_dist.config import Config
from kaizen_dist.distributed.spawn import launch

Start: TypeAlias = Callable[[int, list[str], Path, Path], int]
"""(count, arguments of kaizen-dist, file of standard output, log) -> exit code."""
SAVES = 3
_INTERRUPTED = (128 + 15, Interrupted.exit_code)
"""Exit codes of local ranks that were told to end."""


def measure_here(asked: ScalingRequest) -> BenchResult:
    """Measure counts of ranks of this machine. Fewer of them have no more cores each than the most.

    Raises:
        UsageError: if a count does not fit, or this is a rank itself.
        Interrupted: if the ranks were told to end.
    """
    most = parse_counts(asked.counts)[-1]
    config, stream = asked.open()
    plan = asked.plan(stream, "rank", 1, max(1, len(os.sched_getaffinity(0)) // most))
    check(plan, config, stream, asked.out)
    return measure(plan, config, asked.given, asked.out, _start_here)


def _start_here(count: int, arguments: list[str], output: Path, log: Path) -> int:
    with output.open("wb") as printed, log.open("wb") as logged:
        code = launch(arguments, count, printed, logged)
    if code in _INTERRUPTED:
        raise Interrupted
    return code


def measure(
    plan: ScalingPlan, config: Config, given: Sequence[str], out: Path, start: Start
) -> BenchResult:
    """All rounds, and then the saves.

    Args:
        given: file and overrides that make up `config`, as arguments.
        out: a folder that all ranks see.

    Raises:
        WriteError: if the folder cannot be written.
    """
    make_folder(out / "logs")
    turns = _Turns(plan, config, given, out, start)
    for number, case in in_turns(plan.cases, plan.repeats):
        turns.train(case, number)
    for count in plan.counts:
        turns.save(count)
    return turns.result()


class _Turns:
    """Takes one turn after the other, and keeps the results."""

    def __init__(
        self, plan: ScalingPlan, config: Config, given: Sequence[str], out: Path, start: Start
    ) -> None:
        self._plan, self._config, self._out, self._start = plan, config, out, start
        self._threads = config.train.threads or plan.threads
        self._given = [*given, f"train.threads={self._threads}"]
        self._taken: dict[Case, list[Row]] = {case: [] for case in plan.cases}
        self._stalls: dict[int, float] = {}
        self._failures: list[dict[str, str]] = []
        self._machine: dict[str, Any] = {}
        self._lost: set[Case] = set()
        self._number, self._begun = 0, time.monotonic()

    def train(self, case: Case, round_number: int) -> None:
        """Some steps; a case that has failed is left out."""
        plan = self._plan
        name = f"{plan.name_of(case)}, round {round_number + 1}"
        more = ["--stream", plan.stream, "--steps", str(plan.steps)]
        answer = self._take(name, case, case not in self._lost, "train", *more)
        if answer is None:
            self._lost.add(case)
        else:
            self._machine = self._machine or answer["machine"]
            self._taken[case].append(answer["rows"][0])
            say(f"  {answer['rows'][0]['images_per_second']:,.1f} images/s")
        self.write()

    def save(self, count: int) -> None:
        """A few saves of the state, which does not depend on the batch."""
        case, name = Case(count, count), self._plan.name(count, "checkpoint")
        more = ["--classes", str(self._plan.classes), "--repeats", str(SAVES)]
        more += ["--folder", str(self._out)]
        if answer := self._take(name, case, bool(self._taken[case]), "checkpoint", *more):
            self._stalls[count] = float(answer["rows"][0]["stall_seconds"])
        self.write()

    def write(self) -> None:
        """OUT/scaling.json, .md and, where there is something to draw, .png. Raises WriteError."""
        result = self.result()
        atomic_write(self._out / "scaling.json", json.dumps(result.to_json(), indent=1).encode())
        atomic_write(self._out / "scaling.md", efficiency.document(result).encode())
        if result.rows:
            atomic_write(self._out / "scaling.png", efficiency.figure(result))

    def result(self) -> BenchResult:
        """Of all turns so far."""
        plan, settings = self._plan, self._settings()
        rows = [
            row
            for mode, cases in plan.modes.items()
            for row in efficiency.scaling_rows(
                [plan.label(case.count, mode) for case in cases],
                [self._taken[case] for case in cases],
                [self._stalls.get(case.count) for case in cases],
            )
        ]
        title = "{method}, {backbone}, {engine}, {precision}: ".format(**settings)
        title += "batch {batch_size} + {replay_batch_size} of one {unit}".format(**settings)
        sheets = [efficiency.sheet(title, rows)]
        return BenchResult(rows, self._machine, settings, sheets, list(self._failures))

    def _settings(self) -> dict[str, Any]:
        config, plan = self._config, self._plan
        asked = {name: getattr(plan, name) for name in ("unit", "counts", "repeats", "steps")}
        return asked | {
            "method": config.method,
            "backbone": config.model.backbone,
            "precision": config.parallel.precision,
            "engine": config.parallel.engine,
            "batch_size": config.train.batch_size,
            "replay_batch_size": config.replay.batch_size,
            "workers": config.views.workers,
            "threads": self._threads,
            "ranks_per_node": plan.ranks if plan.unit == "node" else None,
            "nodelist": os.environ.get("SLURM_JOB_NODELIST"),
        }

    def _take(self, name: str, case: Case, wanted: bool, *arguments: str) -> Row | None:
        """The JSON of `bench ARGUMENTS`; None: not wanted, or failed, which is noted."""
        self._number += 1
        if not wanted:
            return None
        total = len(self._plan.cases) * self._plan.repeats + len(self._plan.counts)
        minutes = (time.monotonic() - self._begun) / 60
        say(f"[{self._number} of {total}, {minutes:.1f} min] {name}")
        (verb, *more), overrides = arguments, case.overrides(self._config)
        command = ["bench", verb, *self._given, *overrides, *more, "--json"]
        stem = self._out / "logs" / name.replace(",", "").replace(" ", "-")
        output, log = stem.with_suffix(".json"), stem.with_suffix(".log")
        for file in (output, log):
            file.unlink(missing_ok=True)
        code = self._start(case.count, command, output, log)
        answer = _answer(output) if code == 0 else None
        if answer is None:
            self._failures.append({"name": name, "log": str(log)})
            say(f"  FAILED with code {code}: see {log}")
        return answer


def _answer(output: Path) -> Row | None:
    """The last line of a file that is the JSON of a bench."""
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in reversed(lines) if line.startswith('{"rows"')), None)
    return None if found is None else dict(json.loads(found))
