"""A run's state: where it stands and what it has measured, beside an engine's tensors.

Together they are everything that a run is (promise 4): what `state_of` makes goes into a
checkpoint as numbers and text, `restore` finds the newest whole checkpoint and takes it out.
Order and views need nothing saved: they are functions of the cursor.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kaizen_dist.config import Config, differences, validate
from kaizen_dist.engine import checkpoint, engine_class
from kaizen_dist.engine.process import Process
from kaizen_dist.errors import UsageError
from kaizen_dist.evaluation import results as results_file
from kaizen_dist.evaluation.results import Results
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.replay import ReplayStore


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

    @property
    def within_task(self) -> bool:
        """Whether a task has begun and not ended: there is an optimizer, and maybe a teacher."""
        return self.step > 0


@dataclass
class Resumed:
    """A checkpoint that a run goes on from: its tensors lie in `folder`."""

    folder: Path
    cursor: Cursor
    results: Results


def state_of(
    run: Path, cursor: Cursor, results: Results, config: Config, stream: Stream, process: Process
) -> dict[str, Any]:
    """All of a run's state that is numbers and text; its tensors are an engine's matter."""
    replayed = range(cursor.task) if config.replay.fraction > 0 else ()
    state_format = engine_class(config.parallel.engine).state_format(config)
    return {
        # A copy: training moves the cursor on while the state is written.
        "cursor": asdict(cursor),
        "results": results.model_dump(mode="json"),
        "replay": ReplayStore(run).manifest(replayed),
        "config": config.dump(),
        "stream": stream.fingerprint,
        "format": state_format if cursor.within_task else "tensors",
        "world_size": process.world_size,
        "versions": {name: version(name) for name in ("kaizen-dist", "torch")},
    }


def restore(
    run: Path,
    config: Config,
    stream: Stream,
    process: Process,
    say: Callable[[str], None],
    allow_changes: bool = False,
) -> Resumed | None:
    """The newest whole checkpoint of a run, or None for a new run; all ranks together.

    One of another configuration is accepted if `allow_changes`.

    Raises:
        UsageError: if none is whole, or it is of another configuration, stream or engine.
        DataError: if the replay store is not the one it was saved with.
    """
    folder = _newest_whole(run, process, say)
    if folder is None:
        return None
    state = checkpoint.read_state(folder)
    if not allow_changes:
        _check_config(folder, state, config)
    _check_origin(folder, state, config, stream)
    ReplayStore(run).verify(state["replay"])
    results = Results.model_validate(state["results"])
    results.world_size = process.world_size
    results.config_sha256 = config.sha256
    return Resumed(folder, Cursor(**state["cursor"]), results)


def _newest_whole(run: Path, process: Process, say: Callable[[str], None]) -> Path | None:
    paths = process.exchange(checkpoint.found(run))[0]
    for path in reversed(paths):
        found = checkpoint.faults(path, process.rank, process.world_size)
        wrong = dict.fromkeys(fault for part in process.exchange(found) for fault in part)
        if not wrong:
            return path
        say(f"WARNING: {path.name} is not used: " + "; ".join(wrong))
    if paths:
        raise UsageError(
            f"{run / checkpoint.FOLDER} holds no whole checkpoint (what is wrong with each is "
            f"said above); restore one from a copy, or remove {run / checkpoint.FOLDER} and "
            f"{run / results_file.FILE} to start over"
        )
    return None


def _check_config(folder: Path, state: dict[str, Any], config: Config) -> None:
    changed = differences(config, validate(state["config"], str(folder / checkpoint.STATE)))
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"{folder} is of another configuration.\nWhat differs (there -> here):\n{listed}"
        )


def _check_origin(folder: Path, state: dict[str, Any], config: Config, stream: Stream) -> None:
    if state["stream"] != stream.fingerprint:
        raise UsageError(
            f"{folder} is of a run on another stream (fingerprint {state['stream']}, "
            f"{stream.root} has {stream.fingerprint})"
        )
    state_format = engine_class(config.parallel.engine).state_format(config)
    if state["format"] not in ("tensors", state_format):
        raise UsageError(
            f"parallel.engine: {folder} was saved within a task as {state['format']}, and "
            f"{config.parallel.engine} reads {state_format}; go on with the engine it was saved "
            "by until the task ends"
        )
