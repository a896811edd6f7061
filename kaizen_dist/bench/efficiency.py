"""What scaling comes to: efficiencies and the parts of a step, from the samples of every round.

Pure functions. Efficiency is the speed of a rank relative to the smallest count's: for weak
scaling that is how much of a rank's speed is left, for strong scaling the speed-up over the
ideal one. It is taken within every round and only then put together, for what slows a whole
round down says nothing about scaling.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kaizen_dist.bench.step_timer import BACKWARD, COMMUNICATION, MOMENTUM, STUDENT, TEACHER

FORWARD = (STUDENT, MOMENTUM, TEACHER)
PARTS = ("data", "forward", "backward", "communication", "other", "checkpoint")
"""Forward: all networks and losses. Other: the optimizer, and what has no name. Checkpoint: the
stall of one save a minute, spread over the steps of that minute; it comes on top of the step."""


@dataclass(frozen=True)
class Sample:
    """What one round says of one count."""

    images_per_second: float
    cpu_ms_per_image: float
    step_ms: float
    parts_ms: dict[str, float]
    """As PARTS, without checkpoint."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Sample":
        """From a row of `bench train`."""
        named = {"data", BACKWARD, COMMUNICATION, *FORWARD}
        parts = row["parts_ms"]
        return cls(
            images_per_second=row["images_per_second"],
            cpu_ms_per_image=row["cpu_ms_per_image"],
            step_ms=row["step_ms"],
            parts_ms={
                "data": parts["data"],
                "forward": sum(parts[name] for name in FORWARD),
                "backward": parts[BACKWARD],
                "communication": parts[COMMUNICATION],
                "other": sum(ms for name, ms in parts.items() if name not in named),
            },
        )


@dataclass(frozen=True)
class Row:
    """One count under one mode: medians over its rounds, and the least and the largest."""

    name: str
    mode: str
    nodes: int
    ranks: int
    rounds: int
    images_per_second: float
    """Of the task, over all ranks, while nothing is saved."""
    images_per_second_spread: tuple[float, float]
    cpu_ms_per_image: float
    efficiency: float
    efficiency_spread: tuple[float, float]
    step_ms: float
    parts: dict[str, float]
    """ms a step, by the names of PARTS; all but `checkpoint` add up to `step_ms`. That one is
    missing where it was not measured."""


def judge(
    taken: Sequence[Sequence[Sample]],
    ranks: Sequence[int],
    label: Callable[[int], tuple[str, str, int]],
    stalls: Sequence[float | None],
) -> list[Row]:
    """The rows of one mode; a count without a sample has none.

    Args:
        taken: for every count, ascending, the samples of its first rounds.
        ranks: of every count.
        label: from a count's place to (name, mode, nodes).
        stalls: seconds of a save, where known.
    """
    measured = [index for index, samples in enumerate(taken) if samples]
    rows = []
    for index in measured:
        samples, first = taken[index], measured[0]
        ratios = efficiencies(
            [s.images_per_second / ranks[index] for s in samples],
            [s.images_per_second / ranks[first] for s in taken[first]],
        )
        rates = [s.images_per_second for s in samples]
        name, mode, nodes = label(index)
        rows.append(
            Row(
                name=name,
                mode=mode,
                nodes=nodes,
                ranks=ranks[index],
                rounds=len(samples),
                images_per_second=median(rates),
                images_per_second_spread=_spread(rates),
                cpu_ms_per_image=median(s.cpu_ms_per_image for s in samples),
                efficiency=median(ratios),
                efficiency_spread=_spread(ratios),
                step_ms=median(s.step_ms for s in samples),
                parts=split(samples, stalls[index]),
            )
        )
    return rows


def efficiencies(rates: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of every round that both counts took part in; rates are images per second and rank."""
    return [rate / ideal for rate, ideal in zip(rates, base, strict=False)]


def split(samples: Sequence[Sample], stall_seconds: float | None) -> dict[str, float]:
    """The parts of the median step in ms, scaled to add up to it, as medians by themselves do
    not; and what a save a minute costs each step."""
    step_ms = median(s.step_ms for s in samples)
    parts = {name: median(s.parts_ms[name] for s in samples) for name in samples[0].parts_ms}
    scale = step_ms / sum(parts.values())
    parts = {name: ms * scale for name, ms in parts.items()}
    if stall_seconds is not None:
        parts["checkpoint"] = stall_seconds / 60 * step_ms
    return parts


def _spread(values: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[0], ordered[-1]
