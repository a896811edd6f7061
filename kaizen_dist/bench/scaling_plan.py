"""Cases of a scaling benchmark: counts of nodes or local ranks, and the batches of each.

Weak scaling gives every node (or rank) the configuration's batches; strong scaling shares one of
them among all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kaizen_dist.bench.result import Row
from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config, load
from kaizen_dist.runs import checks
from kaizen_dist.stream.manifest import Stream


@dataclass(frozen=True)
class Case:
    """One measurement. On one node weak and strong scaling are the same."""

    count: int
    growth: int
    """Factor of the configuration's batches."""

    def grown(self, config: Config) -> Config:
        """A configuration with this case's batches and, where they are given, lanes."""
        size, lanes = config.train.batch_size * self.growth, config.train.lanes
        train = {"batch_size": size, "lanes": None if lanes is None else lanes * self.growth}
        replay = {"batch_size": config.replay.batch_size * self.growth}
        sections = {
            "train": config.train.model_copy(update=train),
            "replay": config.replay.model_copy(update=replay),
        }
        return config.model_copy(update=sections)

    def overrides(self, config: Config) -> list[str]:
        """The same for the command line."""
        train, replay = self.grown(config).train, self.grown(config).replay
        lanes = [] if train.lanes is None else [f"train.lanes={train.lanes}"]
        sizes = [f"train.batch_size={train.batch_size}", f"replay.batch_size={replay.batch_size}"]
        return sizes + lanes


@dataclass(frozen=True)
class ScalingPlan:
    """The counts and the settings to measure; plain data."""

    counts: tuple[int, ...]
    """Ascending."""
    unit: Literal["node", "rank"]
    """The unit of the counts."""
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
        """The same; of a case that belongs to both modes with both."""
        own = [mode for mode, cases in self.modes.items() if case in cases]
        return self.name(case.count, " and ".join(own))

    def label(self, count: int, mode: str) -> Row:
        """The columns that identify a row."""
        nodes = count if self.unit == "node" else 1
        name = self.name(count, mode)
        return {"name": name, "mode": mode, "nodes": nodes, "ranks": count * self.ranks}


@dataclass(frozen=True)
class ScalingRequest:
    """The arguments of the user."""

    given: Sequence[str]
    """File and overrides of the configuration, as arguments."""
    stream: str
    out: Path
    counts: str
    """1,2,4"""
    repeats: int
    steps: int

    def open(self) -> tuple[Config, Stream]:
        """Raises UsageError, DataError."""
        config = load(Path(self.given[0]), self.given[1:])
        return config, Stream.open(self.stream, config.stream)

    def plan(
        self, stream: Stream, unit: Literal["node", "rank"], ranks: int, threads: int
    ) -> ScalingPlan:
        """For `ranks` ranks a node, of `threads` cores each."""
        place, classes = stream.place, stream.num_classes
        counts = parse_counts(self.counts)
        return ScalingPlan(counts, unit, ranks, threads, self.repeats, self.steps, place, classes)


def parse_counts(text: str) -> tuple[int, ...]:
    """The numbers in 1,2,4, ascending, each once.

    Raises:
        UsageError: for anything else.
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{text!r} is no list of counts; write 1,2,4")
    return tuple(sorted({int(part) for part in parts}))


def check(plan: ScalingPlan, config: Config, stream: Stream, out: Path) -> None:
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


def _misfit(plan: ScalingPlan, config: Config, stream: Stream, count: int) -> str | None:
    for mode, case in (("weak", Case(count, count)), ("strong", Case(count, 1))):
        try:
            checks.check(case.grown(config), stream, count * plan.ranks)
        except UsageError as error:
            return f"{plan.name(count, mode)}: {error}"
    return None
