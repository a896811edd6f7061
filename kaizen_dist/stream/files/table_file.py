"""The rows of a table in a text (CSV) or in Parquet, as text."""

import csv
import io
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import open_to_read

Rows: TypeAlias = Iterator[tuple[int, Sequence[str]]]
"""Numbers and cells of rows."""


def read_table(path: Path, wanted: Container[str]) -> tuple[list[str], Rows]:
    """Names of all columns, and the rows; cells of unwanted columns may be empty.

    Rows are numbered as a spreadsheet or Parquet does: row 1 of a text is the names of the columns.

    Raises DataError when the file is missing or cannot be read (also from the iterator), UsageError
    for Parquet where pyarrow is missing.
    """
    if not path.exists():
        raise DataError(f"there is no {path}; check the path of the table")
    parquet = path.suffix.lower() in (".parquet", ".pq")
    rows = _parquet_rows(path, wanted) if parquet else _text_rows(path)
    header = next(rows, None)
    if header is None or not any(header):
        raise DataError(f"{path}: is empty; its first row has to name the columns")
    return [name.strip() for name in header], enumerate(rows, 1 if parquet else 2)


def _text_rows(path: Path) -> Iterator[Sequence[str]]:
    number = 0
    try:
        with open_to_read(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            delimiter = max(",;\t", key=header.count)
            for row in csv.reader(text, delimiter=delimiter, strict=True):
                number += 1
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: below row {number}: not CSV in UTF-8 ({error}); mend it, or save the table "
            "again as CSV in UTF-8"
        ) from error


def _parquet_rows(path: Path, wanted: Container[str]) -> Iterator[Sequence[str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: reading Parquet needs pyarrow ({error}); pip install 'kaizen-dist[parquet]', "
            "or save the table as CSV"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            yield names
            for batch in file.iter_batches(columns=[name for name in names if name in wanted]):
                cells = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                columns = [cells.get(name, [""] * batch.num_rows) for name in names]
                for row in zip(*columns, strict=True):
                    yield [as_text(value) for value in row]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write it again") from error


def as_text(value: Any) -> str:
    """A cell as it is in a CSV, whole numbers as such: where some are missing, pandas writes all
    as fractions."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
