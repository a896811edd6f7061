"""The folder of a run, and the checks before anything is written to it.

    RUN/config.yaml      as resolved, enough to repeat the run
    RUN/events.jsonl, RUN/tensorboard/, RUN/checkpoints/, RUN/replay/, RUN/results.json

Nothing is written before every check has passed, so a mistake never blocks the next attempt.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, is_leftover, make_folder, remove_leftovers
from kaizen_dist.common.locks import alone
from kaizen_dist.common.run_layout import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    MODELS,
    REPLAY,
    SLURM,
    TENSORBOARD,
)
from kaizen_dist.config import Config, differences, load
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine import engine_class
from kaizen_dist.learner.flops import step_flops
from kaizen_dist.learner.learner import Learner
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.stream import manifest
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank
from kaizen_dist.stream.remote import is_url

_OWN = (TENSORBOARD, CHECKPOINTS, MODELS, REPLAY)
"""Folders in which a run writes and deletes files."""

_PATIENCE = 180.0
"""Seconds to wait for the lock of an earlier attempt that is saving, or was lost with its node: a
file server keeps the locks of a dead node for a lease (90 s by default on NFS)."""


def check(config: Config, stream: Stream, world_size: int) -> None:
    """Check configuration, stream and world size before a run starts.

    Raises:
        UsageError: naming the field and the cure.
        DataError: for a stream with labels outside its classes.
    """
    lanes_of_rank(config.lanes, 0, world_size)
    stream.check_labels()
    with torch.device("meta"):
        Learner(config, stream.num_classes)
    engine_class(config.parallel.engine).check(config, world_size)
    _check_batch_statistics(config, stream.num_classes, world_size)
    for task in range(len(stream)):
        images = len(stream.split(task, "train"))
        Order(config.train.seed, task, images, config.train.batch_size, config.lanes)
    labelled = any((stream.split(t, "train").labels >= 0).any() for t in range(len(stream)))
    if config.classifier.enabled and not labelled:
        raise UsageError(
            f"classifier.enabled: no training image of {stream.root} has a label; set "
            "classifier.enabled=false distill.classifier=false, or prepare the stream with "
            "--labels above 0"
        )


def _check_batch_statistics(config: Config, classes: int, world_size: int) -> None:
    """Refuse training steps in which a BatchNorm gets a single value per channel."""
    parts = world_size * config.train.accumulate
    lanes, images = config.lanes // parts, config.train.batch_size // parts
    taught = lanes * math.ceil(config.distill.fraction * config.train.batch_size / config.lanes)
    if min(images, taught) > 1 or (config.model.sync_bn and world_size > 1):
        return
    # One micro-batch of one rank as the whole batch.
    own = {"batch_size": images, "lanes": lanes, "accumulate": 1}
    train = config.train.model_copy(update=own)
    replay = config.replay.model_copy(update={"batch_size": config.replay.batch_size // parts})
    try:
        for first in (True, False):
            alone_ = config.model_copy(update={"train": train, "replay": replay})
            step_flops(alone_, classes, first)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        key = "train.batch_size" if images == 1 else "distill.fraction"
        raise UsageError(
            f"{key}: leaves BatchNorm with one image at a time, which has no batch statistics: "
            f"train.batch_size={config.train.batch_size} on {world_size} rank(s) in "
            f"train.accumulate={config.train.accumulate} micro-batches, with "
            f"distill.fraction={config.distill.fraction:g} of them for the teacher; make it larger"
            + (", or set model.sync_bn=true" if world_size > 1 else "")
        ) from None


def check_folder(run: Path, config: Config, stream: Stream, allow_changes: bool = False) -> None:
    """Accept a folder that is new, empty, or holds a run of this stream and this configuration
    (with `allow_changes`: any configuration).

    Raises:
        UsageError: naming what differs.
    """
    for place in (run, stream.place):
        try:
            str(place).encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{place}: a name that is not UTF-8 cannot be stored in a run's files; rename it"
            ) from None
    if run.exists() and not run.is_dir():
        raise UsageError(f"--out {run} is a file; name a folder")
    # `submit` leaves slurm/ there, a run that is killed at once half a file.
    entries = run.iterdir() if run.exists() else ()
    if all(entry.name in (SLURM, LOCK) or is_leftover(entry) for entry in entries):
        return
    for link in (run / name for name in _OWN if (run / name).is_symlink()):
        raise UsageError(
            f"{link} is a link, and a run's folder holds its own files; move its target there"
        )
    if not (run / CONFIG).exists():
        raise UsageError(f"--out {run} is not empty and holds no run; name another folder")
    cure = f"name another folder, or remove {run} to start over"
    changed = differences(config, load(run / CONFIG, stored=True))
    if changed and not allow_changes:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"--out {run} holds a run of another configuration; {cure}.\n"
            f"What differs (there -> here):\n{listed}"
        )
    theirs = read_results(run)
    if theirs is None:
        return
    if not stream.begins_with(theirs.stream.fingerprint, theirs.stream.tasks):
        raise UsageError(
            f"--out {run} holds a run on another stream ({theirs.stream.path}, now "
            f"{stream.root}); {cure}"
        )
    check_classes(run, config, theirs, stream)


def check_classes(run: Path, config: Config, theirs: Results, stream: Stream) -> None:
    """Refuse new classes where a run's classifier is over all classes of a closed stream.

    Raises:
        UsageError: naming the key.
    """
    if config.classifier.over == "all" and theirs.stream.classes != stream.num_classes:
        raise UsageError(
            f"classifier.over=all: {run} has learnt over the {theirs.stream.classes} classes that "
            f"its stream had, and now there are {stream.num_classes}; only runs with "
            "classifier.over=known grow with their stream"
        )


def occupied(
    run: Path, context: RankContext, say: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Lock a run's folder against other trainings; called by all ranks, held by the main one.

    Raises:
        UsageError: on entering, if another training holds the lock and keeps it.
        WriteError: if the folder cannot be made.
    """
    if not context.main:
        return nullcontext()
    return alone(
        run / LOCK,
        f"--out {run}: another process trains in this folder, and two would spoil each other's "
        "checkpoints; wait for it, end it, or name another folder",
        _PATIENCE,
        lambda: say(f"another process still trains in {run}: waiting up to {_PATIENCE:.0f} s"),
    )


def own_config(run: Path, overrides: Iterable[str], allow_changes: bool) -> Config:
    """The configuration of a run, with overrides.

    Raises:
        UsageError: if there is no run, or an override changes what is computed without
            `allow_changes`.
    """
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} holds no run; `kaizen-dist train` starts one")
    config = load(run / CONFIG, overrides, stored=True)
    changed = differences(config, load(run / CONFIG, stored=True))
    if changed and not allow_changes:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"these would make {run} another run; --allow lets them, from its newest checkpoint "
            f"on:\n{listed}"
        )
    return config


def own_stream(run: Path) -> str:
    """Folder or URL of a run's stream.

    Raises:
        UsageError: if the run has no results yet, which record it.
        DataError: if the stream is not there any more.
    """
    results = read_results(run)
    if results is None:
        raise UsageError(f"{run} does not say where its stream is; name it with --stream")
    place = results.stream.path
    if not is_url(place) and not (Path(place) / manifest.MANIFEST).exists():
        raise DataError(
            f"{run}: its stream lay at {place}, and there is none now; name its new place with "
            "--stream"
        )
    return place


def create(run: Path, config: Config, stream: Stream) -> None:
    """Make the folder of a run if it is missing, write its configuration if that is new, and remove
    the temporary files of killed writers. Called by one process alone.

    Raises:
        WriteError: if it cannot be made.
    """
    make_folder(run)
    remove_leftovers(run, run / MODELS)
    if not (run / CONFIG).exists() or differences(config, load(run / CONFIG, stored=True)):
        # A comment; a line feed in a name would continue as YAML.
        header = one_line(
            f"# kaizen-dist train {run / CONFIG} --stream {stream.place} --out NEW_FOLDER"
        )
        atomic_write(run / CONFIG, f"{header}\n{config.to_yaml()}".encode())


def leave_alone(
    run: Path, results: Results, context: RankContext, say: Callable[[str], None]
) -> Results:
    """Report that there is nothing to do; only complete what a kill left unfinished.

    Raises:
        WriteError: if that cannot be written.
    """
    if context.main:
        remove_leftovers(run, run / MODELS)
        known = read_results(run)
        if known is None or len(known.accuracy) < len(results.accuracy):
            results.write(run)
    learnt = len(results.accuracy)
    done = "is finished" if results.finished else f"has learnt {learnt} tasks already"
    say(f"{run} {done}; nothing to do")
    return results
