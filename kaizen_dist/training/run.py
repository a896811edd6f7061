"""A whole run: its checks, its folder, and the loop.

`train` takes a configuration, a stream and a folder, and leaves a finished run there; called
again on a folder that holds a run of the same configuration, it goes on where the last checkpoint
stands, with the tasks that the stream has got since.
"""

from pathlib import Path

from kaizen_dist.config import Config
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.runs import checks as run_folder
from kaizen_dist.runs import resume
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.training.agreement import agree
from kaizen_dist.training.growth import same_view, tasks_to_learn
from kaizen_dist.training.run_log import RunLog
from kaizen_dist.training.trainer import Trainer
from kaizen_dist.views.choose import agreed


def train(
    config: Config,
    stream: Stream,
    run: Path,
    context: RankContext,
    allow_changes: bool = False,
    until: int | None = None,
    follow: float | None = None,
) -> Results:
    """Train on every task of a stream, or on the first `until`; the results so far, on every rank.
    With `follow` wait for further tasks, and look every so many seconds.

    With `allow_changes` a run in the folder goes on under this configuration, whatever its own.

    Raises:
        UsageError: if configuration, stream, folder and world size do not fit together, or
            another process trains in the folder; or if ranks differ.
        DataError: if an image cannot be read.
        WriteError: if the folder cannot be written.
        KaizenError: if the loss, or the model, is no longer finite.
        Preempted: if a signal asked to stop; everything is saved.
    """
    log = RunLog(run, context.main, config)
    stream = same_view(stream, config, context, log.say)
    agree(config, stream, context, until=until, allow=allow_changes, follow=follow)
    backend = agreed(config.views.backend, context.exchange)
    views = config.views.model_copy(update={"backend": backend})
    run_folder.check(config, stream, context.world_size)
    run_folder.check_folder(run, config, stream, allow_changes)
    with run_folder.occupied(run, context, log.say):
        context.barrier()
        resumed = resume.restore(run, config, stream, context, log.say, allow_changes)
        learnt = resumed.cursor.task if resumed else 0
        if resumed and resumed.cursor.within_task:
            # What a task learns stays what it was when it began.
            stream = stream.by_labels(resumed.results.late_labels[learnt])
        waits = learnt >= tasks_to_learn(stream, until)
        if resumed and waits and follow is None:
            return run_folder.leave_alone(run, resumed.results, context, log.say)
        asked, config = config, config.model_copy(update={"views": views})
        trainer = Trainer(config, stream, run, context, log, resumed, until, follow)
        # Nothing is written before everything has been accepted.
        loader = None if waits else trainer.begin()
        context.barrier()
        if context.main:
            run_folder.create(run, asked, stream)
        context.barrier()
        return trainer.loop(loader)
