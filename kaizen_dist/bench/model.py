"""The time of a step on N nodes, from what was measured on few: a model, not a measurement.

In come the time that a rank computes, the bytes and the number of its collectives, and the
bandwidth and latency of what joins the ranks; out come the time of a step and the efficiency
of weak scaling. Assumed: every rank has as much to do; a ring carries every collective, within
a node at its bandwidth and between nodes at a node's share of the network; gradients travel
while the backward pass still computes, everything else is waited for; the loader keeps up.
"""

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
