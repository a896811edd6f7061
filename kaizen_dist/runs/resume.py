"""The state of a run beside the engine's tensors: its cursor, results, replay and configuration.

Together with the tensors it is all of a run's state (promise 4): `state_of` makes the numbers and
texts of a checkpoint, `restore` finds the newest valid checkpoint and reads them. Order and views
need no state: they are functions of the cursor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from kaizen_dist.common.errors import DataError, KaizenError, UsageError
from kaizen_dist.common.files import read_json
from kaizen_dist.common.inventory import Inventory, StrictModel, reasons
from kaizen_dist.common.run_layout import CHECKPOINTS, RESULTS
from kaizen_dist.common.version import VERSION
from kaizen_dist.config import Config, differences, validate
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine import engine_class
from kaizen_dist.engine.checkpoint import layout
from kaizen_dist.learner.flops import step_flops
from kaizen_dist.runs.allowed_changes import refuse_other_tensors
from kaizen_dist.runs.known_classes import known_classes
from kaizen_dist.runs.results import DistillSwitches, Results, StreamSummary
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay import ReplayStore
from kaizen_dist.stream.replay_order import NEWEST


class Cursor(StrictModel):
    """Position of a run: its next step, and images and time so far."""

    task: int = Field(ge=0)
    step: int = Field(ge=0)
    """Within the task."""
    images: int = Field(ge=0)
    """Task images learnt from, over all ranks."""
    train_seconds: float = Field(ge=0)
    wall_seconds: float = Field(ge=0)

    @classmethod
    def beginning(cls) -> "Cursor":
        """Of a new run."""
        return cls(task=0, step=0, images=0, train_seconds=0.0, wall_seconds=0.0)

    @property
    def within_task(self) -> bool:
        """Whether a task is in progress: there is an optimizer, and maybe a teacher."""
        return self.step > 0


class State(StrictModel):
    """The content of a checkpoint's `state.json`."""

    cursor: Cursor
    results: Results
    replay: dict[str, Inventory]
    """By the folders of the finished tasks."""
    config: dict[str, Any]
    stream: str
    """Its fingerprint."""
    format: str
    """Of the tensors; see `Engine.state_format`."""
    world_size: int = Field(ge=1)
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits_together(self) -> "State":
        done = self.cursor.task
        if len(self.results.accuracy) != done:
            raise ValueError(f"{len(self.results.accuracy)} tasks are measured, {done} finished")
        if self.results.stream.fingerprint != self.stream:
            raise ValueError("results and checkpoint are of two streams")
        if self.replay and sorted(self.replay) != ReplayStore.folders(range(done)):
            raise ValueError(f"replay: not what {done} finished tasks have left")
        return self


@dataclass
class Resumed:
    """A checkpoint that a run resumes from: its tensors are in `folder`."""

    folder: Path
    cursor: Cursor
    results: Results


def fresh_results(config: Config, stream: Stream, context: RankContext) -> Results:
    """Results of a run that has measured nothing yet."""
    return Results(
        method=config.method,
        distill=DistillSwitches(
            features=config.distill.features, classifier=config.distill.classifier
        ),
        classifier=config.classifier.enabled or config.eval.head == "ncm",
        ncm=[] if config.eval.ncm else None,
        oracle=[] if config.eval.oracle else None,
        replay_fraction=config.replay.fraction,
        replay_order=NEWEST,
        world_size=context.world_size,
        teacher_share=step_flops(config, known_classes(config, stream, 0).count).teacher_share,
        stream=_summary(stream),
        task_classes=_task_classes(stream),
        seed=config.train.seed,
        config_sha256=config.sha256,
    )


def begin_task(results: Results, stream: Stream, task: int) -> None:
    """Note by which labels a task is learnt from its first step on."""
    results.late_labels = [*results.late_labels[:task], stream.given]


def take_up(results: Results, stream: Stream) -> None:
    """Bring the results of a run up to date with its stream, which may have grown."""
    if len(stream) > results.stream.tasks:
        results.finished, results.state_sha256 = False, None
        for row in (*results.accuracy, *results.knn):
            row += [None] * (len(stream) - len(row))
    results.stream, results.task_classes = _summary(stream), _task_classes(stream)


def _summary(stream: Stream) -> StreamSummary:
    return StreamSummary(
        path=stream.place,
        fingerprint=stream.fingerprint,
        scenario=stream.scenario,
        source=stream.source,
        tasks=len(stream),
        classes=stream.num_classes,
        train_counts=[task.train for task in stream.tasks],
        val_counts=[task.val for task in stream.tasks],
        upright=stream.upright,
    )


def _task_classes(stream: Stream) -> list[list[str]]:
    return [[stream.classes[c] for c in task.classes] for task in stream.tasks]


def state_of(
    run: Path,
    cursor: Cursor,
    results: Results,
    config: Config,
    stream: Stream,
    context: RankContext,
) -> dict[str, Any]:
    """All of a run's state but its tensors, which an engine saves."""
    replayed = range(cursor.task) if config.replay.fraction > 0 else ()
    state_format = engine_class(config.parallel.engine).state_format(config)
    state = State(
        cursor=cursor,
        results=results,
        replay=ReplayStore(run).manifest(replayed),
        config=config.dump(),
        stream=stream.fingerprint,
        format=state_format if cursor.within_task else "tensors",
        world_size=context.world_size,
        versions={"kaizen-dist": VERSION, "torch": str(torch.__version__)},
    )
    # Copied: training moves on while it is written.
    return state.model_dump(mode="json")


def restore(
    run: Path,
    config: Config,
    stream: Stream,
    context: RankContext,
    say: Callable[[str], None],
    allow_changes: bool = False,
) -> Resumed | None:
    """The newest valid checkpoint of a run, or None for a new run; all ranks together.

    With `allow_changes` one of another configuration is accepted if it has every tensor that this
    configuration needs. Nothing is written.

    Raises:
        UsageError: if none is valid, or it is of another configuration, stream or engine.
        DataError: if the replay store is not the one that it was saved with.
    """
    found = _newest_whole(run, context, say)
    if found is None:
        return None
    folder, state = found
    begun = state.cursor.task + state.cursor.within_task
    # Earlier versions knew no labels that came later.
    state.results.late_labels += [0] * (begun - len(state.results.late_labels))
    theirs = validate(state.config, str(folder / layout.STATE), stored=True)
    if allow_changes:
        refuse_other_tensors(folder, theirs, config, stream, state.results, state.cursor.step)
    else:
        _check_config(folder, theirs, config)
    _check_origin(folder, state, config, stream)
    if config.replay.fraction > 0 and state.cursor.task > 0 and not state.replay:
        raise UsageError(
            f"replay.fraction: {folder} has kept nothing of its finished tasks to replay; "
            "leave it at 0"
        )
    ReplayStore(run).verify(state.replay)
    return Resumed(folder, state.cursor, state.results)


def read_state(folder: Path) -> State:
    """The numbers and texts of a checkpoint's state.

    Raises:
        DataError: if the file is damaged, or of another checkpoint.
    """
    path = folder / layout.STATE
    try:
        state = State.model_validate(read_json(path, follow=False))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({reasons(error)})") from None
    if _place(state) != layout.position(folder):
        raise DataError(f"{path} is of {layout.name_of(*_place(state))}")
    validate(state.config, str(path), stored=True)
    return state


def _place(state: State) -> tuple[int, int]:
    return state.cursor.task, state.cursor.step


def _newest_whole(
    run: Path, context: RankContext, say: Callable[[str], None]
) -> tuple[Path, State] | None:
    paths = context.exchange(layout.found(run))[0]
    for path in reversed(paths):
        state = None
        found = layout.faults(path, context.rank, context.world_size)
        if not found:
            try:
                state = read_state(path)
            except KaizenError as error:
                found = [str(error)]
        wrong = dict.fromkeys(fault for part in context.exchange(found) for fault in part)
        if state is not None and not wrong:
            return path, state
        say(f"WARNING: {path.name} is not used: " + "; ".join(wrong))
    if paths:
        raise UsageError(
            f"{run / CHECKPOINTS} holds no whole checkpoint (what is wrong with each is "
            f"said above); restore one from a copy, or remove {run / CHECKPOINTS} and "
            f"{run / RESULTS} to start over"
        )
    return None


def _check_config(folder: Path, theirs: Config, config: Config) -> None:
    changed = differences(config, theirs)
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"{folder} is of another configuration. If the change is meant, or was allowed before, "
            f"`kaizen-dist resume RUN --allow` goes on with it.\n"
            f"What differs (there -> here):\n{listed}"
        )


def _check_origin(folder: Path, state: State, config: Config, stream: Stream) -> None:
    if not stream.begins_with(state.stream, state.results.stream.tasks):
        raise UsageError(
            f"{folder} is of a run on another stream (fingerprint {state.stream} after "
            f"{state.results.stream.tasks} tasks; {stream.root} has {stream.fingerprint} after "
            f"{len(stream)})"
        )
    state_format = engine_class(config.parallel.engine).state_format(config)
    if state.format not in ("tensors", state_format):
        raise UsageError(
            f"parallel.engine: {folder} was saved within a task as {state.format}, and "
            f"{config.parallel.engine} reads {state_format}; go on with the engine it was saved "
            "by until the task ends"
        )
