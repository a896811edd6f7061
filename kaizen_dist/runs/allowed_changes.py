"""Limits of `resume --allow`: a new configuration may need no tensor that the checkpoint lacks.

This is not listed key by key: a learner is built for both configurations on torch's `meta` device,
which has shapes and no values.
"""

from pathlib import Path
from typing import TypeAlias

import torch

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config, differences, flatten
from kaizen_dist.config.loading import assemble
from kaizen_dist.learner.learner import Learner
from kaizen_dist.runs.known_classes import known_classes
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.manifest import Stream

_Tensors: TypeAlias = dict[str, tuple[torch.Size, torch.dtype]]

CHANGEABLE = (
    "train.*, replay.*, views.*, parallel.*, optim.* (optim.name between adamw and the others only "
    "where a task ends), ssl_weight, the weights, rates and switches of terms of classifier.*, "
    "supervise.*, distill.*, teacher.* and ssl.*, and what is measured in eval.*"
)
"""Keys that need no other tensors, for messages."""


def refuse_other_tensors(
    folder: Path, theirs: Config, ours: Config, stream: Stream, results: Results, step: int
) -> None:
    """Check that a checkpoint before a step of the task after those that `results` measure, saved
    with `theirs`, has what `ours` needs.

    Raises:
        UsageError: naming the keys that need other tensors.
    """
    if not differences(ours, theirs):
        return

    def tensors(config: Config) -> _Tensors:
        return _tensors(config, stream, results, step)

    there = tensors(theirs)
    if _lacks(there, tensors(ours)):
        changed = [line.split(": ")[0] for line in differences(ours, theirs)]
        single = {key: _with(theirs, ours, key) for key in changed}
        alone = [
            key
            for key, config in single.items()
            if config is None or _lacks(there, tensors(config))
        ]
        raise UsageError(
            f"{', '.join(alone or changed)}: cannot be changed in a run, whose checkpoint {folder} "
            f"has other tensors; start a new run with it, or leave it. --allow can change "
            f"{CHANGEABLE}"
        )
    if step > 0 and (ours.optim.name == "adamw") != (theirs.optim.name == "adamw"):
        raise UsageError(
            f"optim.name: {folder} was saved within a task and holds the state of "
            f"{theirs.optim.name}, which {ours.optim.name} does not know; leave it until the task "
            "ends"
        )


def _with(theirs: Config, ours: Config, key: str) -> Config | None:
    """Their configuration with one key of ours; None if that is not valid."""
    values, wanted = flatten(theirs.dump()), flatten(ours.dump())
    values.pop(key, None)
    return assemble((), values | ({key: wanted[key]} if key in wanted else {}), {}, stored=True)[0]


def _tensors(config: Config, stream: Stream, results: Results, step: int) -> _Tensors:
    """Shapes and types of the learner's tensors before a task's step."""
    task, labels = len(results.accuracy), results.late_labels
    with torch.device("meta"):
        learner = Learner(config, known_classes(config, stream, task - 1, labels).count)
        if step > 0:
            learner.begin_task(task == 0, known_classes(config, stream, task, labels))
    return {name: (t.shape, t.dtype) for name, t in learner.state_dict().items()}


def _lacks(there: _Tensors, needed: _Tensors) -> bool:
    return not needed.items() <= there.items()
