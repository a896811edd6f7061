"""The time of a step on N nodes, from what was measured on few: a model, not a measurement.

In come the time that a rank computes, the bytes and the number of its collectives, and the
bandwidth and latency of what joins the ranks; out come the time of a step and the efficiency
of weak scaling. Assumed: every rank has as much to do; a ring carries every collective, within
a node at its bandwidth and between nodes at a node's share of the network; gradients travel
while the backward pass still computes, everything else is waited for; the loader keeps up.

    python -m kaizen_dist.bench.model       the table of docs/performance.md
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one rank does in a step, whatever the number of ranks (weak scaling)."""

    compute_seconds: float
    """All of the step but its collectives."""
    backward_seconds: float
    """The part of it in which gradients can travel."""
    gradient_bytes: int
    """Summed over all ranks once a step."""
    gathered_bytes: int = 0
    """Of this rank's rows that every rank gets (projections, keys, negatives), and whose
    gradients are summed again."""
    small_collectives: int = 0
    """Of a few kilobytes, one after the other: batch statistics, forward and backward."""


@dataclass(frozen=True)
class Links:
    """What joins ranks: bytes a second that one rank sends while it receives as much."""

    node_bandwidth: float
    node_latency: float
    """Seconds of one hop; so is the next."""
    network_bandwidth: float
    """Of a whole node."""
    network_latency: float
    overlap: float = 0.9
    """Share of the backward pass that gradients can hide behind: the last bucket cannot."""


@dataclass(frozen=True)
class Prediction:
    ranks: int
    step_seconds: float
    waited_seconds: float
    """Of it, for collectives."""

    def efficiency(self, alone: float) -> float:
        """Of weak scaling, against a step of `alone` seconds on one rank."""
        return alone / self.step_seconds


def predict(work: Work, links: Links, nodes: int, ranks_per_node: int) -> Prediction:
    """The step on `nodes` nodes.

    A ring moves 2 (R - 1) / R of the bytes of an all-reduce over every link, (R - 1) of a rank's
    part in an all-gather, in 2 (R - 1) or (R - 1) hops of the latency of its slowest link
    (a tree of log2 R hops where that is less, as NCCL and gloo have for what is small).
    """
    ranks = nodes * ranks_per_node
    if ranks == 1:
        return Prediction(1, work.compute_seconds, 0.0)
    across = nodes > 1
    bandwidth = links.network_bandwidth if across else links.node_bandwidth
    latency = links.network_latency if across else links.node_latency
    depth = 2 * (ranks - 1).bit_length() * latency
    gradients = 2 * (ranks - 1) / ranks * work.gradient_bytes / bandwidth + depth
    # Gathered forward, and summed over ranks backward: as a whole of `ranks` parts.
    gathered = 0.0
    if work.gathered_bytes:
        gathered = 3 * (ranks - 1) * work.gathered_bytes / bandwidth + 2 * depth
    hidden = links.overlap * work.backward_seconds
    waited = max(0.0, gradients - hidden) + gathered + work.small_collectives * depth
    return Prediction(ranks, work.compute_seconds + waited, waited)


H100 = Links(node_bandwidth=300e9, node_latency=5e-6, network_bandwidth=50e9, network_latency=20e-6)
RANKS = 8
"""Of a node."""
IMAGES = 256
"""Of the task, a rank and step."""
STEPS = {
    "ResNet-50": Work(0.213, 0.085, 157_000_000, small_collectives=332),
    "ViT-S/16": Work(0.164, 0.066, 178_000_000, small_collectives=30),
}
"""Compute times are estimates for an H100 that runs one kernel after the other, bf16, 256 + 32
images of 224 px with a teacher: BYOL, and MoCo v3. Bytes and numbers are counted from the shipped
configurations."""


def table(nodes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> str:
    """What `predict` says of STEPS, as Markdown."""
    heads = [f"{name} ms | efficiency | images/s" for name in STEPS]
    lines = [f"| nodes | {' | '.join(heads)} |", "|---" * (1 + 3 * len(STEPS)) + "|"]
    for count in nodes:
        cells = [str(count)]
        for work in STEPS.values():
            found = predict(work, H100, count, RANKS)
            speed = found.ranks * IMAGES / found.step_seconds
            cells.append(f"{1000 * found.step_seconds:.1f}")
            cells += [f"{found.efficiency(work.compute_seconds):.2f}", f"{speed:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
