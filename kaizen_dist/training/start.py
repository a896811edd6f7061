"""The learner that a run begins with."""

from collections.abc import Callable

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.distributed.rendezvous import name_ranks
from kaizen_dist.learner.learner import Learner
from kaizen_dist.runs.initial_weights import report, start_from
from kaizen_dist.runs.results import Results
from kaizen_dist.training.agreement import differing


def learner_of_run(
    config: Config,
    classes: int,
    context: RankContext,
    begun: Results | None,
    say: Callable[[str], None],
) -> Learner:
    """A learner with its first weights. Of a run that begins, whose results are `begun`, the
    backbone has those of `model.init`; else they come from a checkpoint. All ranks together.

    Raises:
        UsageError, DataError: see `start_from`; if ranks read different weights.
    """
    learner = Learner(config, classes, context)
    if begun is None or config.model.init is None:
        return learner
    started = begun.started_from = start_from(config.model.init, learner)
    if odd := differing([str(theirs) for theirs in context.exchange(started.sha256)]):
        raise UsageError(
            f"model.init: {name_ranks(odd)} read other weights from {started.source} than the "
            "others; let all ranks read the same file"
        )
    for line in report(started):
        say(line)
    return learner
