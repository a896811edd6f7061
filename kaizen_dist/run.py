"""A run's folder, and the state that a checkpoint in it holds.

    RUN/config.yaml      as resolved, enough to repeat the run
    RUN/events.jsonl, RUN/tensorboard/, RUN/checkpoints/, RUN/replay/, RUN/results.json

Nothing is made before everything has been checked, so that a mistake never blocks the retry.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kaizen_dist.config import Config, differences, load
from kaizen_dist.engine import checkpoint
from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.evaluation import results as results_file
from kaizen_dist.evaluation.results import Results, fresh_results
from kaizen_dist.files import atomic_write, make_folder
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.order import Order, lanes_of_rank

CONFIG = "config.yaml"


@dataclass
class Cursor:
    """Where a run stands: the next step it takes, and what it has spent so far."""

    task: int = 0
    step: int = 0
    """Within the task."""
    images: int = 0
    """Task images learnt from, over all ranks."""
    train_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclass
class Resumed:
    """What a checkpoint brings back."""

    cursor: Cursor
    learner: dict[str, Any]
    optimizer: dict[str, Any] | None
    """None between two tasks: each begins with a fresh one."""


def check(config: Config, stream: Stream, world_size: int) -> None:
    """Everything about a run that can be known to be wrong before it starts.

    Raises:
        UsageError: naming the field and the cure.
    """
    lanes_of_rank(config.lanes, 0, world_size)
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


def check_folder(run: Path, config: Config, stream: Stream) -> None:
    """That a folder is new, empty, or holds a run of this configuration and stream.

    Raises:
        UsageError: naming what differs.
    """
    if run.exists() and not run.is_dir():
        raise UsageError(f"--out {run} is a file; name a folder")
    if not run.exists() or not any(run.iterdir()):
        return
    if not (run / CONFIG).exists():
        raise UsageError(f"--out {run} is not empty and holds no run; name another folder")
    cure = f"name another folder, or remove {run} to start over"
    changed = differences(config, load(run / CONFIG))
    if changed:
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


def create(run: Path, config: Config, stream: Stream) -> None:
    """Make the folder of a run, if it is not there yet.

    Raises:
        WriteError: if it cannot be made.
    """
    make_folder(run)
    if not (run / CONFIG).exists():
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


def save(
    run: Path,
    cursor: Cursor,
    learner: dict[str, Any],
    optimizer: dict[str, Any] | None,
    results: Results,
) -> None:
    """Write a checkpoint at the cursor (one rank)."""
    state = {
        "cursor": vars(cursor),
        "learner": learner,
        "optimizer": optimizer,
        "results": results.model_dump_json(),
    }
    checkpoint.save(run, cursor.task, cursor.step, state)


def restore(
    run: Path, config: Config, stream: Stream, world_size: int
) -> tuple[Resumed | None, Results]:
    """The newest checkpoint and the results at it; None and fresh ones for a new run."""
    found = checkpoint.found(run)
    if not found:
        return None, fresh_results(config, stream, world_size)
    state = checkpoint.load(found[-1])
    results = Results.model_validate_json(state["results"])
    results.world_size = world_size
    return Resumed(Cursor(**state["cursor"]), state["learner"], state["optimizer"]), results
