"""Reads the folder of a run back into typed values.

In comes a run's folder, out goes a `Run`: its resolved configuration, its results so far
and its logged steps. A run that is still going, or was killed, is read as far as it got; a
file that is missing or does not say what it should is a DataError that names it.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from kaizen_dist.errors import DataError
from kaizen_dist.evaluation.results import Results

TERMS = ("ssl", "classifier", "kd_features", "kd_classifier")
"""The weighted terms of the loss, in the order of the method's equation."""


class _Event(BaseModel):
    """One row of events.jsonl."""

    task: Annotated[int, Field(ge=0)]
    epoch: int
    step: Annotated[int, Field(ge=0)]
    loss: float | None
    ssl: float | None
    classifier: float | None
    kd_features: float | None
    kd_classifier: float | None
    lr: float | None
    images_per_second: float | None
    data_wait: float | None
    time: float


@dataclass(frozen=True)
class Events:
    """The logged steps in order, one array a column; a value that is null reads as NaN.

    A step that was logged twice, before and after a resume, counts once, as logged last.
    """

    task: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    diverged: tuple[int, int] | None
    """Task and step of the first loss or term that is not finite."""

    def __len__(self) -> int:
        return len(self.task)

    def is_on(self, term: str) -> bool:
        """Whether a term of the loss was ever anything but absent or zero."""
        return bool(np.any(np.nan_to_num(self.columns[term], nan=0.0) != 0.0))


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    results: Results
    events: Events

    @cached_property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or str(self.path)

    @property
    def tasks_done(self) -> int:
        """Tasks that are learnt and measured."""
        return len(self.results.accuracy)


def load_run(path: Path) -> Run:
    """Read the folder of a run, finished or not.

    Raises DataError naming the file and the cure when one is missing or malformed. The last
    line of events.jsonl may be half written, as a kill leaves it, and is then left out.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; name the folder that was given to train as --out")
    config, text = _read_config(path / "config.yaml")
    return Run(
        path,
        config,
        text,
        _read_results(path / "results.json"),
        _read_events(path / "events.jsonl"),
    )


def _read(path: Path, cure: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: missing; {cure}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {cure}") from error


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    cure = "name the folder that was given to train as --out"
    text = _read(path, cure)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({error}); restore it as train wrote it") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds no settings; restore it as train wrote it")
    return config, text


def _read_results(path: Path) -> Results:
    text = _read(path, "it is written when the first task is done: wait for it, or resume the run")
    try:
        return Results.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise DataError(
            f"{path}: malformed; restore it, or resume the run, which writes it anew\n"
            + _faults(error)
        ) from None


def _faults(error: ValidationError) -> str:
    """Every fault on a line of its own: the field, what is wrong with it, what it holds."""
    return "\n".join(
        f"  {'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
        for fault in error.errors(include_url=False)
    )


def _read_events(path: Path) -> Events:
    text = _read(path, "train writes a row into it at every logged step")
    parser = TypeAdapter(_Event)
    lines = text.split("\n")
    rows: dict[tuple[int, int], _Event] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parser.validate_json(line, strict=True)
        except ValidationError as error:
            if number == len(lines) and not _is_json(line):
                break
            raise DataError(
                f"{path}, line {number}: malformed; mend or remove this line\n{_faults(error)}"
            ) from None
        rows[row.task, row.step] = row
    return _columns([rows[key] for key in sorted(rows)])


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _columns(rows: list[_Event]) -> Events:
    names = ("loss", *TERMS, "lr", "images_per_second", "data_wait")
    table = [[row.__dict__[name] for name in names] for row in rows]
    values = np.array(table, dtype=np.float64).reshape(-1, len(names))
    diverged = next(
        (
            (row.task, row.step)
            for row, logged in zip(rows, table, strict=True)
            if any(v is not None and not np.isfinite(v) for v in logged[: 1 + len(TERMS)])
        ),
        None,
    )
    return Events(
        np.array([r.task for r in rows], dtype=np.int64),
        np.array([r.step for r in rows], dtype=np.int64),
        {name: values[:, i] for i, name in enumerate(names)},
        diverged,
    )
