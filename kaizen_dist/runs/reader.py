"""Reads the folder of a run back into typed values.

In comes a run's folder, out goes a `Run`: its resolved configuration, its results so far
and its logged steps. A run that is still going, or was killed, is read as far as it got; a
file that is missing or does not say what it should is a DataError that names it.

The folder may come from somebody else. Its files are read if they are regular files of its own:
a link out of it would put into the page what lies there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import open_to_read, parse_json, read_bytes
from kaizen_dist.common.run_layout import CONFIG, EVENTS, RESULTS
from kaizen_dist.config.parsing import FILE_LIMIT, parse_yaml
from kaizen_dist.learner.terms import TERMS
from kaizen_dist.runs.results import Results

_LONGEST_LINE = 1 << 20
"""Bytes of a row; none of ours comes near."""
_MOST_ROWS = 10_000_000
_MOST_FAULTS = 10

_Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 40)]
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1 + 1e-6)]
_Large: TypeAlias = Annotated[float, Field(ge=-1e40, le=1e40)]
"""Beyond every float32, and still to be drawn."""
_Speed: TypeAlias = Annotated[float, Field(ge=0, le=1e12)]


class _Row(BaseModel):
    """A row of events.jsonl but for the terms of the loss.

    A loss that is not finite ends a run before it is logged.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    task: _Count
    epoch: _Count
    step: _Count
    loss: _Large | None
    lr: _Large | None
    images_per_second: _Speed | None
    data_wait: _Share | None
    time: float


_TERM_FIELDS: dict[str, Any] = dict.fromkeys(TERMS, (_Large | None, ...))
_Event = create_model("_Event", __base__=_Row, **_TERM_FIELDS)
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
    """A run's folder, read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    results: Results
    events: Events

    @cached_property
    def name(self) -> str:
        """The folder's own name, as it can be shown."""
        return one_line(self.path.resolve().name or self.path)

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
    config, text = _read_config(path / CONFIG)
    results = _read_results(path / RESULTS)
    events = _read_events(path / EVENTS, results.stream.tasks)
    return Run(path, config, text, results, events)


def _cannot_read(path: Path, error: OSError | UnicodeDecodeError, cure: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: missing; {cure}")
    if path.is_symlink():
        return DataError(f"{path}: is a link, which is not followed; put the file itself there")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(f"{path}: cannot be read ({reason}); {cure}")


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
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


def _read_results(path: Path) -> Results:
    try:
        document = read_bytes(path, follow=False)
    except OSError as error:
        cure = "it is written when the first task is done: wait for it, or resume the run"
        raise _cannot_read(path, error, cure) from None
    try:
        return Results.model_validate_json(document)
    except ValidationError as error:
        raise DataError(
            f"{path}: malformed; restore it, or resume the run, which writes it anew\n"
            + _faults(error)
        ) from None


def _faults(error: ValidationError) -> str:
    """Every fault on a line of its own: the field and what is wrong with it."""
    found = error.errors(include_url=False, include_input=False)
    lines = [f"  {'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in found]
    more = len(lines) - _MOST_FAULTS
    return "\n".join(lines[:_MOST_FAULTS]) + (f"\n  and {more} more" if more > 0 else "")


def _read_events(path: Path, tasks: int) -> Events:
    parser = TypeAdapter(_Event)
    rows: dict[tuple[int, int], _Row] = {}
    try:
        for number, line in enumerate(_lines(path), start=1):
            where = f"{path}, line {number}"
            try:
                row = parser.validate_json(line)
            except ValidationError as error:
                if _is_cut_short(line):
                    break
                raise DataError(
                    f"{where}: malformed; mend or remove this line\n{_faults(error)}"
                ) from None
            if row.task >= tasks:
                raise DataError(
                    f"{where}: is of task {row.task}, but by its results the run has {tasks}; mend "
                    "or remove this line"
                )
            rows[row.task, row.step] = row
            if len(rows) > _MOST_ROWS:
                raise DataError(f"{path}: more than {_MOST_ROWS:,} steps; remove most of its lines")
    except OSError as error:
        cure = "train writes a row into it at every logged step"
        raise _cannot_read(path, error, cure) from None
    return _columns([rows[key] for key in sorted(rows)])


def _lines(path: Path) -> Iterator[bytes]:
    """Those that are not empty, cut where they are longer than any of ours. Raises OSError."""
    with open_to_read(path, follow=False) as file:
        while line := file.readline(_LONGEST_LINE):
            if line.strip():
                yield line


def _is_cut_short(line: bytes) -> bool:
    """Whether this is the beginning of a row, and no more."""
    if not line.startswith(b"{") or line.endswith(b"\n"):
        return False
    try:
        parse_json(line)
    except ValueError:
        return True
    return False


def _columns(rows: list[_Row]) -> Events:
    names = ("loss", *TERMS, "lr", "images_per_second", "data_wait")
    table = [[row.__dict__[name] for name in names] for row in rows]
    values = np.array(table, dtype=np.float64).reshape(-1, len(names))
    return Events(
        np.array([r.task for r in rows], dtype=np.int64),
        np.array([r.step for r in rows], dtype=np.int64),
        {name: values[:, i] for i, name in enumerate(names)},
    )
