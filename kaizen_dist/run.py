"""A run's folder, and what is checked before it is touched.

    RUN/config.yaml      as resolved, enough to repeat the run
    RUN/events.jsonl, RUN/tensorboard/, RUN/checkpoints/, RUN/replay/, RUN/results.json

Nothing is made before everything has been checked, so that a mistake never blocks the retry.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from pydantic import ValidationError

from kaizen_dist.config import Config, differences, load
from kaizen_dist.deploy import models
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.process import Process
from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.evaluation import results as results_file
from kaizen_dist.evaluation.results import Results
from kaizen_dist.files import atomic_write, is_leftover, make_folder, remove_leftovers
from kaizen_dist.launch import job
from kaizen_dist.learner.learner import Learner
from kaizen_dist.locks import alone
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank

CONFIG = "config.yaml"
LOCK = ".lock"

_PATIENCE = 180.0
"""Seconds for an earlier attempt that is saving, or was lost with its node, to let go of its
folder: a file server keeps a dead node's locks for a lease (90 s by default on NFS)."""


def check(config: Config, stream: Stream, world_size: int) -> None:
    """Everything about a run that can be known to be wrong before it starts.

    Raises:
        UsageError: naming the field and the cure.
        DataError: for a stream with labels that are none of its classes.
    """
    lanes_of_rank(config.lanes, 0, world_size)
    stream.check_labels()
    with torch.device("meta"):
        Learner(config, stream.num_classes)
    engine_class(config.parallel.engine).check(config, world_size)
    for task in range(len(stream)):
        Order(
            config.train.seed,
            task,
            len(stream.split(task, "train")),
            config.train.batch_size,
            config.lanes,
        )
    labelled = any((stream.split(t, "train").labels >= 0).any() for t in range(len(stream)))
    if config.classifier.enabled and not labelled:
        raise UsageError(
            f"classifier.enabled: no training image of {stream.root} has a label; set "
            "classifier.enabled=false distill.classifier=false, or prepare the stream with "
            "--labels above 0"
        )


def check_folder(run: Path, config: Config, stream: Stream, allow_changes: bool = False) -> None:
    """That a folder is new, empty, or holds a run of this configuration (of any, where
    `allow_changes` says so) and this stream.

    Raises:
        UsageError: naming what differs.
    """
    if run.exists() and not run.is_dir():
        raise UsageError(f"--out {run} is a file; name a folder")
    # Whoever submitted the run has left its slurm/ there; who was killed at once, half a file.
    entries = run.iterdir() if run.exists() else ()
    if all(entry.name in (job.FOLDER, LOCK) or is_leftover(entry) for entry in entries):
        return
    if not (run / CONFIG).exists():
        raise UsageError(f"--out {run} is not empty and holds no run; name another folder")
    cure = f"name another folder, or remove {run} to start over"
    changed = differences(config, load(run / CONFIG))
    if changed and not allow_changes:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"--out {run} holds a run of another configuration; {cure}.\n"
            f"What differs (there -> here):\n{listed}"
        )
    theirs = read_results(run)
    if theirs is not None and theirs.stream.fingerprint != stream.fingerprint:
        raise UsageError(
            f"--out {run} holds a run on another stream ({theirs.stream.path}, now "
            f"{stream.root}); {cure}"
        )


def occupied(
    run: Path, process: Process, say: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Keep other trainings out of a run's folder; called by all ranks, held by the main one.

    Raises:
        UsageError: on entering, if another one is at work there and goes on.
        WriteError: if the folder cannot be made.
    """
    if not process.main:
        return nullcontext()
    return alone(
        run / LOCK,
        f"--out {run}: another process trains in this folder, and two would spoil each other's "
        "checkpoints; wait for it, end it, or name another folder",
        _PATIENCE,
        lambda: say(f"another process still trains in {run}: waiting up to {_PATIENCE:.0f} s"),
    )


def own_config(run: Path, overrides: Iterable[str], allow_changes: bool) -> Config:
    """The configuration a run was started with, and what may be set anew in it.

    Raises:
        UsageError: if there is no run, or an override changes what is computed and
            `allow_changes` does not say that it may.
    """
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} holds no run; `kaizen-dist train` starts one")
    config = load(run / CONFIG, overrides)
    changed = differences(config, load(run / CONFIG))
    if changed and not allow_changes:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"these would make {run} another run; --allow lets them, from its newest checkpoint "
            f"on:\n{listed}"
        )
    return config


def own_stream(run: Path) -> str:
    """Where the stream of a run lies, or lay when it was started.

    Raises:
        UsageError: if the run has not come so far as to note it.
    """
    results = read_results(run)
    if results is None:
        raise UsageError(f"{run} does not say where its stream is; name it with --stream")
    return results.stream.path


def create(run: Path, config: Config, stream: Stream) -> None:
    """Make the folder of a run, if it is not there yet; keep its configuration up to date, and
    remove what killed writers have left. Called by one process alone.

    Raises:
        WriteError: if it cannot be made.
    """
    make_folder(run)
    remove_leftovers(run, run / models.FOLDER)
    if not (run / CONFIG).exists() or differences(config, load(run / CONFIG)):
        header = f"# kaizen-dist train {run / CONFIG} --stream {stream.root} --out NEW_FOLDER\n"
        atomic_write(run / CONFIG, (header + config.to_yaml()).encode())


def read_results(run: Path) -> Results | None:
    """The results of a run so far, or None before its first.

    Raises:
        DataError: if the file is broken.
    """
    path = run / results_file.FILE
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(f"{path}: not readable as results: {error}") from None
