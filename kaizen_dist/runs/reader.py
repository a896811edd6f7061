"""Reads the folder of a run: configuration, results and logged steps as typed values.

A run that is in progress, or was killed, is read as far as it got; a file that is missing or
malformed is a DataError that names it. The folder may come from somebody else: its files are read
if they are regular files of its own, since a link out of it would show what lies there.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import open_to_read, parse_json, read_bytes
from kaizen_dist.common.run_layout import CONFIG, EVENTS, RESULTS
from kaizen_dist.config.parsing import FILE_LIMIT, parse_yaml
from kaizen_dist.learner.terms import BEYOND, TERMS
from kaizen_dist.runs.results import Results

TAIL_BYTES: Final = 16 << 10
"""Bytes of a log's end that `last_rows` reads."""
_LONGEST_LINE = 1 << 20
"""Bytes of a row; none of ours comes near."""
_MOST_ROWS = 10_000_000
_MOST_FAULTS = 10

_Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 40)]
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1 + 1e-6)]
_Large: TypeAlias = Annotated[float, Field(ge=-1e40, le=1e40)]
"""Beyond every float32, and still to be drawn."""


class EventRow(BaseModel):
    """A row of events.jsonl but for the terms of the loss.

    A loss that is not finite ends a run before it is logged.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)

    task: _Count
    epoch: _Count
    step: _Count
    loss: _Large | None
    lr: _Large | None
    images_per_second: Annotated[float, Field(ge=0, le=1e12)] | None
    data_wait: _Share | None
    time: Annotated[float, Field(ge=0, le=1e12)]


_TERM_FIELDS: dict[str, Any] = dict.fromkeys(TERMS, (_Large | None, ...))
_TERM_FIELDS |= dict.fromkeys(BEYOND, (_Large | None, None))
_FullRow = create_model("_FullRow", __base__=EventRow, **_TERM_FIELDS)
"""One row of events.jsonl."""


@dataclass(frozen=True)
class Events:
    """The logged steps in order, one array a column; a value that is null reads as NaN.

    A step that was logged twice, before and after a resume, counts once, as logged last.
    """

    task: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.task)

    def is_on(self, term: str) -> bool:
        """Whether a term of the loss was ever anything but absent or zero."""
        return bool(np.any(np.nan_to_num(self.columns[term], nan=0.0) != 0.0))


@dataclass(frozen=True)
class Run:
    """The content of a run's folder."""

    path: Path
    config: dict[str, Any]
    config_text: str
    results: Results
    events: Events

    @cached_property
    def name(self) -> str:
        """The folder's own name, safe to print."""
        return one_line(self.path.resolve().name or self.path)

    @property
    def tasks_done(self) -> int:
        """Tasks that are learnt and measured."""
        return len(self.results.accuracy)


def load_run(path: Path) -> Run:
    """Read the folder of a run, finished or not, without a last row that a kill cut short.

    Raises:
        DataError: naming the file that is missing or malformed, and the cure.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; name the folder that was given to train as --out")
    config, text = read_config(path)
    results = read_results(path)
    if results is None:
        raise DataError(
            f"{path / RESULTS}: missing; it is written when the first task is done: wait for it, "
            "or resume the run"
        )
    return Run(path, config, text, results, read_events(path, results.stream.tasks))


def read_config(run: Path) -> tuple[dict[str, Any], str]:
    """The configuration of a run as plain data, not validated, and as text. Raises DataError."""
    path = run / CONFIG
    try:
        text = read_bytes(path, FILE_LIMIT, follow=False).decode()
    except (OSError, UnicodeDecodeError) as error:
        cure = "name the folder that was given to train as --out"
        raise _cannot_read(path, error, cure) from None
    try:
        config = parse_yaml(text, str(path))
    except UsageError as error:
        raise DataError(f"{error}; restore it as train wrote it") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise DataError(f"{path}: holds no settings; restore it as train wrote it")
    return config, text


def read_results(run: Path) -> Results | None:
    """The results of a run so far; None before its first. Raises DataError."""
    path, cure = run / RESULTS, "restore it, or resume the run, which writes it anew"
    try:
        return Results.model_validate_json(read_bytes(path, follow=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot_read(path, error, cure) from None
    except ValidationError as error:
        raise DataError(f"{path}: malformed; {cure}\n{_faults(error)}") from None


def read_events(run: Path, tasks: int) -> Events:
    """All logged steps of a run of so many tasks. Raises DataError."""
    path = run / EVENTS
    rows: dict[tuple[int, int], EventRow] = {}
    try:
        with open_to_read(path, follow=False) as file:
            # A longer line is cut, and so is no row.
            lines = iter(partial(file.readline, _LONGEST_LINE), b"")
            for number, line in enumerate(lines, start=1):
                row = _row(line, f"{path}, line {number}", last=not line.endswith(b"\n"))
                if row is None:
                    continue
                if row.task >= tasks:
                    raise DataError(
                        f"{path}, line {number}: is of task {row.task}, but by its results the run "
                        f"has {tasks}; mend or remove this line"
                    )
                rows[row.task, row.step] = row
                if len(rows) > _MOST_ROWS:
                    raise DataError(
                        f"{path}: more than {_MOST_ROWS:,} steps; remove most of its lines"
                    )
    except OSError as error:
        cure = "train writes a row into it at every logged step"
        raise _cannot_read(path, error, cure) from None
    return _columns([rows[key] for key in sorted(rows)])


def last_rows(run: Path) -> list[EventRow]:
    """The last rows of a run that may be writing more, oldest first; [] before its first.

    Only the end of the log is read. Raises DataError.
    """
    path = run / EVENTS
    try:
        with open_to_read(path, follow=False) as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            # The beginning may be cut by the limit, the end by the writer.
            lines = file.read(TAIL_BYTES).split(b"\n")[1 if start else 0 : -1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot_read(path, error, "train writes it at every logged step") from None
    if start and not lines:
        raise DataError(f"{path}: malformed; its end is no row")
    places = (f"{path}, {before} lines before its last" for before in range(len(lines) - 1, -1, -1))
    found = (_row(line, place, last=False) for line, place in zip(lines, places, strict=True))
    return [row for row in found if row is not None]


def _row(line: bytes, where: str, *, last: bool) -> EventRow | None:
    """A row; None for an empty line, and for a `last` one that is only the beginning of a row."""
    if not line.strip():
        return None
    try:
        return _FullRow.model_validate_json(line)
    except ValidationError as error:
        if last and line.startswith(b"{") and not _is_json(line):
            return None
        raise DataError(f"{where}: malformed; mend or remove this line\n{_faults(error)}") from None


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _cannot_read(path: Path, error: OSError | UnicodeDecodeError, cure: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing; {cure}")
    if path.is_symlink():
        return DataError(f"{path}: is a link, which is not followed; put the file itself there")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read ({reason}); {cure}")


def _faults(error: ValidationError) -> str:
    """Every fault on a line of its own: the field, and what is wrong with it."""
    found = error.errors(include_url=False, include_input=False)
    lines = [f"  {'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in found]
    more = len(lines) - _MOST_FAULTS
    return "\n".join(lines[:_MOST_FAULTS]) + (f"\n  and {more} more" if more > 0 else "")


def _columns(rows: Iterable[EventRow]) -> Events:
    names = ("task", "step", "loss", *TERMS, "lr", "images_per_second", "data_wait")
    table = [[getattr(row, name) for name in names] for row in rows]
    values = np.array(table, dtype=np.float64).reshape(-1, len(names))
    columns = {name: values[:, i] for i, name in enumerate(names)}
    task, step = (columns.pop(name).astype(np.int64) for name in ("task", "step"))
    return Events(task, step, columns)
