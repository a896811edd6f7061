"""What a logger is: numbers of a run, sent somewhere beside events.jsonl."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from kaizen_dist.common.files import atomic_write, make_folder, read_text
from kaizen_dist.common.run_layout import LOGGERS
from kaizen_dist.config.schema import Config

Row: TypeAlias = Mapping[str, Any]
"""A row of events.jsonl."""


class Logger:
    """Base of all loggers; made without arguments, on rank 0 only.

    An exception ends the logger, with a warning, and never the training.
    """

    replays: ClassVar[bool] = False
    """Whether a resumed run gives it the rows and numbers from before the resume once more."""

    def begin(self, run: Path, config: Config) -> None:
        """Start, or go on with, the record of the run in this folder."""

    def row(self, row: Row, step: int) -> None:
        """A row of events.jsonl; `step` counts the steps of all tasks, from 1."""

    def task(self, name: str, value: float, task: int) -> None:
        """A number measured after a task (from 0): final_accuracy, forgetting."""

    def close(self) -> None:
        """The training has ended, finished or not."""


def numbers(row: Row) -> dict[str, float]:
    """The measurements of a row, named as in TensorBoard: train/loss, train/lr, ..."""
    return {f"train/{k}": v for k, v in row.items() if isinstance(v, float) and k != "time"}


def stored_id(run: Path, service: str, new: Callable[[], str]) -> tuple[str, bool]:
    """The id of the run at a service, and whether it is `new`; RUN/loggers keeps it."""
    path = run / LOGGERS / f"{service}.id"
    try:
        return read_text(path, 1024).strip(), False
    except FileNotFoundError:
        made = new()
    make_folder(path.parent)
    atomic_write(path, made.encode())
    return made, True
