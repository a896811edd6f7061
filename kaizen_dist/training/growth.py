"""The stream of a run as it is now: it may have grown since it was opened.

The main rank looks, and the others open what it has seen: they may read a copy, or through a mount
that lags.
"""

import time
from collections.abc import Callable
from typing import Final

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.distributed.rendezvous import name_ranks
from kaizen_dist.stream.manifest import Stream, load_manifest

_LAG: Final = 60.0
"""Seconds in which a rank may see an older state of the stream than the main one."""
_PAUSE: Final = 0.5


def tasks_to_learn(stream: Stream, until: int | None) -> int:
    """How many tasks a run is to have learnt: all that there are, or the first `until`."""
    return len(stream) if until is None else min(until, len(stream))


def what_came(before: Stream, now: Stream) -> str:
    """The difference between two states of a stream, in words; "" if there is none."""
    parts = []
    if len(now) > len(before):
        parts.append(f"grown from {len(before)} to {len(now)} tasks")
    if now.given > before.given:
        parts.append("got labels for images of past tasks, known from the next task on")
    return f"the stream has {' and '.join(parts)}" if parts else ""


def same_view(
    stream: Stream, config: Config, context: RankContext, say: Callable[[str], None]
) -> Stream:
    """The stream in one state on all ranks, which call together, where it has grown while they
    opened it. Streams that differ otherwise stay as they are. Raises as `grown`."""
    chains = context.exchange(_history(stream))
    newest = max(chains, key=len)
    lags = any(len(chain) < len(newest) for chain in chains)
    if lags and all(chain == newest[: len(chain)] for chain in chains):
        return grown(stream, config, context, say)
    return stream


def grown(
    stream: Stream, config: Config, context: RankContext, say: Callable[[str], None]
) -> Stream:
    """The stream with the tasks and labels that it has now; all ranks together.

    Where the main rank cannot read it, the stream stays as it was opened: what is left to learn of
    it is not held up.

    Raises:
        DataError: on all ranks, if it is another stream now, or a rank does not see the new tasks.
    """
    now = _look(stream, config, say) if context.main else None
    told = context.exchange((stream.fingerprint, _history(now) if now else []))
    chain = told[0][1]
    if not all(theirs in chain for theirs, _ in told):
        raise DataError(
            f"{stream.place} is another stream than when this run began; restore it, or start a "
            "new run"
        )
    if all(theirs == chain[-1] for theirs, _ in told):
        return stream
    opened = now or _wait_for(stream, config, chain[-1])
    late = [rank for rank, there in enumerate(context.exchange(opened is not None)) if not there]
    if opened is None or late:
        raise DataError(
            f"{stream.place} has grown, which {name_ranks(late)} cannot see after {_LAG:g} s; let "
            "all ranks read the same stream, then start the same command"
        )
    return opened


def _history(stream: Stream) -> list[str]:
    return [link.fingerprint for link in stream.manifest.chain]


def _look(stream: Stream, config: Config, say: Callable[[str], None]) -> Stream | None:
    """The stream as it is now, as it was opened where that cannot be read; None if there is another
    one in its place."""
    try:
        manifest = load_manifest(stream.root)
        if manifest.fingerprint == stream.fingerprint:
            return stream
        if stream.fingerprint not in {link.fingerprint for link in manifest.chain}:
            return None
        return Stream.open(str(stream.root), config.stream)
    except KaizenError as error:
        say(f"cannot look for new tasks: {error}")
        return stream


def _wait_for(stream: Stream, config: Config, fingerprint: str) -> Stream | None:
    """The stream of this fingerprint, once this rank sees it; None if it does not."""
    if stream.fingerprint == fingerprint:
        return stream
    deadline = time.monotonic() + _LAG
    while time.monotonic() < deadline:
        try:
            if load_manifest(stream.root).fingerprint == fingerprint:
                return Stream.open(str(stream.root), config.stream)
        except DataError:
            pass  # half copied, perhaps
        time.sleep(_PAUSE)
    return None
