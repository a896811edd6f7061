"""Weights & Biases: `log.to: [wandb]`, with the extra `wandb`.

Project, entity and mode are those of the environment (WANDB_PROJECT, WANDB_MODE=offline, ...).
"""

import os
from pathlib import Path

import wandb
from typing_extensions import override

from kaizen_dist.common.run_layout import LOGGERS
from kaizen_dist.config.schema import Config
from kaizen_dist.training.loggers.base import Logger, Row, numbers, stored_id


class WandB(Logger):
    """A run that is resumed or requeued goes on in the same W&B run."""

    @override
    def begin(self, run: Path, config: Config) -> None:
        name, _ = stored_id(run, "wandb", wandb.util.generate_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kaizen-dist"),
            id=name,
            resume="allow",
            name=run.resolve().name,
            dir=str(run / LOGGERS),
            config=config.dump(),
        )
        self._run.define_metric("tasks/*", step_metric="task")

    @override
    def row(self, row: Row, step: int) -> None:
        # W&B itself drops steps that it has, as those from before a kill.
        self._run.log(numbers(row), step=step)

    @override
    def task(self, name: str, value: float, task: int) -> None:
        self._run.log({f"tasks/{name}": value, "task": task})

    @override
    def close(self) -> None:
        self._run.finish()
