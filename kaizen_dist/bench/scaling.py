"""Weak and strong scaling: the same training on more and more nodes, or ranks of this machine.

In comes a configuration, whose batches are those of one node (or rank), and the counts to
measure. Weak scaling gives every node such a batch; strong scaling shares one out among them.
All counts take turns in rounds, every other one backwards, in one place: what drifts meanwhile
meets all of them. Each turn is a `bench train` of its own, and at last each count makes a
`bench checkpoint`. Who starts the ranks is told from outside (`Start`).

    OUT/scaling.json, .md, .png     written anew after every round
    OUT/logs/                       what every turn said
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kaizen_dist.bench.efficiency import Sample, judge
from kaizen_dist.bench.scalingreport import ScalingBench
from kaizen_dist.common.errors import Interrupted, UsageError
from kaizen_dist.common.files import make_folder
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config
from kaizen_dist.distributed.spawn import launch
from kaizen_dist.runs import checks
from kaizen_dist.stream.manifest import Stream

Start = Callable[[int, list[str], Path, Path], int]
"""(count, arguments of kaizen-dist, file of standard output, log) -> exit code."""
SAVES = 3
_TOLD = (128 + 15, Interrupted.exit_code)
"""What ranks of this machine end with when it is they who were told to."""


@dataclass(frozen=True)
class Case:
    """What is measured by itself. On one node weak and strong scaling are the same."""

    count: int
    growth: int
    """The configuration's batches, times this."""

    def overrides(self, config: Config) -> list[str]:
        """For the command line."""
        grown = self.grown(config)
        lanes = [] if grown.train.lanes is None else [f"train.lanes={grown.train.lanes}"]
        batches = [grown.train.batch_size, grown.replay.batch_size]
        return [f"train.batch_size={batches[0]}", f"replay.batch_size={batches[1]}", *lanes]

    def grown(self, config: Config) -> Config:
        """A configuration with this case's batches and, where they are given, lanes."""
        size, lanes = config.train.batch_size * self.growth, config.train.lanes
        train = {"batch_size": size, "lanes": None if lanes is None else lanes * self.growth}
        replay = {"batch_size": config.replay.batch_size * self.growth}
        return config.model_copy(
            update={
                "train": config.train.model_copy(update=train),
                "replay": config.replay.model_copy(update=replay),
            }
        )


@dataclass(frozen=True)
class Plan:
    """What is measured; plain data."""

    counts: tuple[int, ...]
    """Ascending."""
    unit: Literal["node", "rank"]
    """What is counted."""
    ranks: int
    """Of one node."""
    threads: int
    """Of a rank, at every count, where `train.threads` leaves it open."""
    repeats: int
    steps: int
    stream: str
    classes: int

    @property
    def modes(self) -> dict[str, list[Case]]:
        """The cases of weak and of strong scaling, by count."""
        return {
            "weak": [Case(count, count) for count in self.counts],
            "strong": [Case(count, 1) for count in self.counts],
        }

    @property
    def cases(self) -> list[Case]:
        """All, each once."""
        return list(dict.fromkeys(case for cases in self.modes.values() for case in cases))

    def name(self, count: int, mode: str) -> str:
        """As in "weak, 2 nodes"."""
        return f"{mode}, {count} {self.unit}{'s' * (count > 1)}"

    def name_of(self, case: Case) -> str:
        """The same; of a case that belongs to both modes without one."""
        own = [mode for mode, cases in self.modes.items() if case in cases]
        return self.name(case.count, " and ".join(own))


def counts(text: str) -> tuple[int, ...]:
    """The numbers in 1,2,4, ascending, each once.

    Raises:
        UsageError: for all else.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{text!r} is no list of counts; write 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def check(plan: Plan, config: Config, stream: Stream, out: Path) -> None:
    """That every count can be measured, and that `out` is no run.

    Raises:
        UsageError: naming all counts that do not fit, why, and those that do.
    """
    if (out / CONFIG).exists() or (out / "slurm" / "attempts.jsonl").exists():
        raise UsageError(f"--out {out} holds a run; name another folder")
    wrong = [_misfit(plan, config, stream, count) for count in plan.counts]
    if any(wrong):
        most = range(1, plan.counts[-1] + 1)
        fit = [str(c) for c in most if _misfit(plan, config, stream, c) is None]
        listed = "\n".join(f"  {text}" for text in wrong if text)
        raise UsageError(
            f"--{'nodes' if plan.unit == 'node' else 'procs'}: not every count fits\n{listed}\n"
            f"  counts that fit: {', '.join(fit) or 'none'}"
        )


def _misfit(plan: Plan, config: Config, stream: Stream, count: int) -> str | None:
    for mode, case in (("weak", Case(count, count)), ("strong", Case(count, 1))):
        try:
            checks.check(case.grown(config), stream, count * plan.ranks)
        except UsageError as error:
            return f"{plan.name(count, mode)}: {error}"
    return None


def measure(
    plan: Plan, config: Config, given: Sequence[str], out: Path, start: Start
) -> ScalingBench:
    """All rounds, and then the saves.

    Args:
        given: file and overrides that make up `config`, as arguments.
        out: a folder that all ranks see.

    Raises:
        WriteError: if the folder cannot be written.
    """
    make_folder(out / "logs")
    turns = _Turns(plan, config, given, out, start)
    for number in range(plan.repeats):
        for case in plan.cases[:: -1 if number % 2 else 1]:
            turns.train(case, number)
        turns.result().write(out)
    for count in plan.counts:
        turns.save(count)
    result = turns.result()
    result.write(out)
    return result


class _Turns:
    """One after the other, and what they came to."""

    def __init__(
        self, plan: Plan, config: Config, given: Sequence[str], out: Path, start: Start
    ) -> None:
        self._plan, self._config, self._out, self._start = plan, config, out, start
        threads = config.train.threads or plan.threads
        self._given = [*given, f"train.threads={threads}"]
        self._taken: dict[Case, list[Sample]] = {case: [] for case in plan.cases}
        self._stalls: dict[int, float] = {}
        self._failures: list[dict[str, str]] = []
        self._machine: dict[str, Any] = {}
        self._lost: set[Case] = set()
        self._number, self._begun = 0, time.monotonic()

    def train(self, case: Case, round_number: int) -> None:
        """Some steps; a case that has failed is left out."""
        if case in self._lost:
            self._number += 1
            return
        plan = self._plan
        more = ["--stream", plan.stream, "--steps", str(plan.steps)]
        name = f"{plan.name_of(case)}, round {round_number + 1}"
        said = self._take(name, case, ["train", *more])
        if said is None:
            self._lost.add(case)
            return
        row = said["rows"][0]
        self._machine = self._machine or said["machine"]
        self._taken[case].append(Sample.of(row))
        print(f"  {row['images_per_second']:,.1f} images/s", file=sys.stderr, flush=True)

    def save(self, count: int) -> None:
        """A few saves of the state, which does not depend on the batch."""
        case = self._plan.modes["weak"][self._plan.counts.index(count)]
        if not self._taken[case]:
            self._number += 1
            return
        more = ["--classes", str(self._plan.classes), "--repeats", str(SAVES)]
        name = self._plan.name(count, "checkpoint")
        said = self._take(name, case, ["checkpoint", *more, "--folder", str(self._out)])
        if said is not None:
            self._stalls[count] = float(said["rows"][0]["stall_seconds"])

    def result(self) -> ScalingBench:
        """Of all turns so far."""
        plan = self._plan
        rows = [
            row
            for mode, cases in plan.modes.items()
            for row in judge(
                [self._taken[case] for case in cases],
                [case.count * plan.ranks for case in cases],
                partial(self._label, mode),
                [self._stalls.get(case.count) for case in cases],
            )
        ]
        return ScalingBench(rows, self._machine, self._settings(), list(self._failures))

    def _label(self, mode: str, index: int) -> tuple[str, str, int]:
        count = self._plan.counts[index]
        nodes = count if self._plan.unit == "node" else 1
        return self._plan.name(count, mode), mode, nodes

    def _settings(self) -> dict[str, Any]:
        config, plan = self._config, self._plan
        return {
            "method": config.method,
            "backbone": config.model.backbone,
            "precision": config.parallel.precision,
            "engine": config.parallel.engine,
            "batch_size": config.train.batch_size,
            "replay_batch_size": config.replay.batch_size,
            "workers": config.views.workers,
            "threads": config.train.threads or plan.threads,
            "unit": plan.unit,
            "counts": list(plan.counts),
            "ranks_per_node": plan.ranks if plan.unit == "node" else None,
            "repeats": plan.repeats,
            "steps": plan.steps,
            "nodelist": os.environ.get("SLURM_JOB_NODELIST"),
        }

    def _take(self, name: str, case: Case, arguments: list[str]) -> dict[str, Any] | None:
        """What a `bench` said; None, and why, where it failed."""
        self._number += 1
        total = len(self._plan.cases) * self._plan.repeats + len(self._plan.counts)
        minutes = (time.monotonic() - self._begun) / 60
        where = f"[{self._number} of {total}, {minutes:.1f} min]"
        print(f"{where} {name}", file=sys.stderr, flush=True)
        verb, *rest = arguments
        config, *overrides = self._given
        command = ["bench", verb, config, *overrides, *case.overrides(self._config), *rest]
        stem = self._out / "logs" / name.replace(",", "").replace(" ", "-")
        output, log = stem.with_suffix(".json"), stem.with_suffix(".log")
        for file in (output, log):
            file.unlink(missing_ok=True)
        code = self._start(case.count, [*command, "--json"], output, log)
        said = _answer(output) if code == 0 else None
        if said is None:
            self._failures.append({"name": name, "log": str(log)})
            print(f"  FAILED with code {code}: see {log}", file=sys.stderr, flush=True)
        return said


def _answer(output: Path) -> dict[str, Any] | None:
    """The last line of a file that is what a bench prints."""
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in reversed(lines) if line.startswith('{"rows"')), None)
    return None if found is None else dict(json.loads(found))


def plan_here(counts: tuple[int, ...], repeats: int, steps: int, stream: Stream) -> Plan:
    """For ranks of this machine. Fewer of them have no more cores each than the most have."""
    threads = max(1, len(os.sched_getaffinity(0)) // counts[-1])
    return Plan(counts, "rank", 1, threads, repeats, steps, str(stream.root), stream.num_classes)


def start_here(count: int, arguments: list[str], output: Path, log: Path) -> int:
    """`Start` for ranks of this machine.

    Raises:
        Interrupted: if they were told to end.
    """
    with output.open("wb") as said, log.open("wb") as noted:
        code = launch(arguments, count, said, noted)
    if code in _TOLD:
        raise Interrupted
    return code
