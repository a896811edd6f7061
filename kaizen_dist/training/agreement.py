"""Check before the first step that all ranks have the same version, configuration and stream.

Each rank reads configuration and stream itself, from a copy on its node, through a mount that lags
or from a server whose answers differ; ranks that differ would train on to the end.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.version import VERSION
from kaizen_dist.config import Config, flatten
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.distributed.rendezvous import name_ranks
from kaizen_dist.stream.manifest import Stream

_OF_A_NODE = (
    "stream.",
    "train.threads",
    "views.workers",
    "views.prefetch",
    "views.memory_budget",
    "views.stall_seconds",
)
"""Keys, or prefixes of keys, that each node may set for itself."""


def agree(config: Config, stream: Stream, context: RankContext, **options: object) -> None:
    """Compare all ranks, which call together; `options` are those of the command.

    Raises:
        UsageError: on all ranks, naming those with another package, configuration or option.
        DataError: likewise, with another stream.
    """
    flat = flatten(config.dump())
    settings = {key: value for key, value in flat.items() if not key.startswith(_OF_A_NODE)}
    settings |= {f"--{name}": value for name, value in options.items()}
    sha256 = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    told = context.exchange((VERSION, sha256, stream.fingerprint, str(stream.root)))
    versions, digests, fingerprints, places = zip(*told, strict=True)
    if odd := differing(versions):
        raise UsageError(
            f"{name_ranks(odd)} {_has(odd)} kaizen_dist {one_line(versions[odd[0]])}, the others "
            f"{one_line(_common(versions))}: install the same version on all nodes"
        )
    if odd := differing(digests):
        everyones = context.exchange(settings)
        theirs, ours = everyones[odd[0]], everyones[digests.index(_common(digests))]
        keys = [k for k in dict.fromkeys([*ours, *theirs]) if ours.get(k) != theirs.get(k)]
        listed = ", ".join(f"{k}={theirs.get(k)} instead of {ours.get(k)}" for k in keys)
        raise UsageError(
            f"{name_ranks(odd)} {_has(odd)} another configuration than the others: "
            f"{one_line(listed)}; start all ranks with the same command and the same files"
        )
    if odd := differing(fingerprints):
        place, its, common = places[odd[0]], fingerprints[odd[0]], _common(fingerprints)
        raise DataError(
            f"{name_ranks(odd)} {_has(odd)} another stream than the others: the sha256 of "
            f"stream.json in {one_line(place)} is {its[:12]}... there, and {common[:12]}... for "
            "the others; let all ranks read the same one, or copy it anew"
        )


def differing(values: Sequence[str]) -> list[int]:
    """The ranks, by position, whose value is not the most common one."""
    return [rank for rank, value in enumerate(values) if value != _common(values)]


def _common(values: Sequence[str]) -> str:
    """The most common value; of several as frequent, the first."""
    return Counter(values).most_common(1)[0][0]


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"
