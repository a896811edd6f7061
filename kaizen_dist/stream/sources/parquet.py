"""`parquet:PATTERN`: encoded images in Parquet files, as Hugging Face's library writes them.

    parquet:data/*.parquet                  image (or image.bytes and image.path), and label
    parquet:data/*.parquet:fine_label       labels are another column

Class names come from the files' metadata. A file whose name begins with train, val, valid,
validation or test is that part, if one begins with train.

Images in Parquet can only be read many at a time, and those of a shard lie anywhere: so all are
copied into the work folder first, one behind the other.
"""

import hashlib
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file, open_to_read, parse_json
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files.file_tree import SourceFiles
from kaizen_dist.stream.files.image_columns import ChosenRows, ImageColumns, roles
from kaizen_dist.stream.files.listing import Faults
from kaizen_dist.stream.files.name_list import NameList, PickedNames
from kaizen_dist.stream.files.patterns import (
    absolute_pattern,
    fixed_folder,
    is_gone,
    matching_files,
)
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind

_ROWS = 64
"""In memory at a time, with their images."""
_FOOTER = 1 << 16
_NO_BYTES = -1


class ParquetSource(SourceKind):
    """A row an image."""

    usage = "parquet:PATTERN or parquet:PATTERN:COLUMN (of the labels)"

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:
        """As `SourceKind.open`."""
        pattern, label = _split(argument)
        paths, names = _files(pattern)
        is_val_file = roles([Path(name).name for name in names])
        files = [_File(path, name) for path, name in zip(paths, names, strict=True)]
        columns = ImageColumns.choose(str(paths[0]), files[0].features, label)
        used = [file for file, part in zip(files, is_val_file, strict=True) if part is not None]
        told = [f"{file.name} is left out" for file in files if file not in used]
        for file in used:
            file.check(columns)
        if not sum(file.rows for file in used):
            raise DataError(f"{spec}: no rows in it")
        copy = work / f"{_digest(pattern)}.images"
        lengths = _copied(used, columns, copy, progress)
        rows = NameList(name for file in used for name in file.row_names(columns))
        values = (value for file in used for value in file.labels(columns))
        of_file = np.array([part for part in is_val_file if part is not None], bool)
        is_val = np.repeat(of_file, [file.rows for file in used])
        faults, kept = Faults(), lengths != _NO_BYTES
        for n in np.flatnonzero(~kept).tolist():
            faults.add("rows without the bytes of an image", rows[n])
        numbered = columns.number(str(paths[0].parent), values)
        chosen = ChosenRows.of(spec, numbered, is_val, kept, rows.__getitem__, faults)
        sizes = np.maximum(lengths, 0)
        offsets = (np.cumsum(sizes) - sizes)[chosen.rows]
        sizes = sizes[chosen.rows]
        return Source(
            spec=spec,
            classes=chosen.classes,
            domains=[],
            labels=chosen.labels,
            domains_of=np.full(len(sizes), NO_DOMAIN),
            is_val=chosen.is_val,
            images=SourceFiles(copy, PickedNames(rows, chosen.rows), {}, sizes, offsets),
            sizes=sizes,
            told=(f"{plural(len(used), 'file')}, {chosen.told()}", *told),
            faults=faults.lines(),
        )

    def resolve(self, argument: str) -> str:
        """As `SourceKind.resolve`."""
        pattern, label = _split(argument)
        return absolute_pattern(pattern) + (f":{label}" if label else "")

    def stamp(self, spec: str, argument: str, source: Source | None) -> str | None:  # noqa: ARG002
        """Of the files' names, sizes and ends, where Parquet describes what is in them; None for
        files that are gone."""
        pattern, _ = _split(argument)
        return None if is_gone(pattern) else _digest(pattern)


class _File:
    """A Parquet file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with self._open() as file:
            self.schema = file.schema_arrow
            self.rows = int(file.metadata.num_rows)
        self.features = {field.name: _feature(field.type) for field in self.schema}
        for column, about in _noted(self.schema.metadata or {}).items():
            if self.features.get(column, {}).get("_type") == "" and isinstance(about, dict):
                self.features[column] = about if about.get("_type") != "Image" else {}

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with open_to_read(self.path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
                yield file
        except (OSError, pyarrow.ArrowException) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{self.path}: cannot be read as Parquet: {why}") from error

    def check(self, columns: ImageColumns) -> None:
        """Raises DataError unless the file has these columns."""
        if self.features.get(columns.image, {}).get("_type") != "Image":
            raise DataError(f"{self.path}: has no column {columns.image} of images, as others have")
        if columns.label is not None and columns.label not in self.features:
            raise DataError(f"{self.path}: has no column {columns.label}, as others have")

    def _column(self, name: str, field: str = "") -> Iterator[Any]:
        """The values of a column, or of a field in it."""
        wanted = f"{name}.{field}" if field else name
        with self._open() as file:
            for batch in file.iter_batches(_ROWS if field != "path" else 65536, columns=[wanted]):
                column = batch.column(name)
                yield from (column.field(field) if field else column).to_pylist()

    def images(self, columns: ImageColumns) -> Iterator[bytes | None]:
        """The encoded images of all rows."""
        is_struct = pyarrow.types.is_struct(self.schema.field(columns.image).type)
        return self._column(columns.image, "bytes" if is_struct else "")

    def labels(self, columns: ImageColumns) -> Iterator[Any]:
        """The labels of all rows; None: unlabelled."""
        return iter([None] * self.rows) if columns.label is None else self._column(columns.label)

    def row_names(self, columns: ImageColumns) -> Iterator[str]:
        """The names of all rows, by file and number, and by the original file if it is noted."""
        kind = self.schema.field(columns.image).type
        has_path = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
        paths = self._column(columns.image, "path") if has_path else iter([None] * self.rows)
        for number, path in enumerate(paths):
            yield f"{self.name}:{number}" + (f":{path}" if path else "")


def _feature(kind: Any) -> dict[str, Any]:
    """A column's type in the words of Hugging Face's library, as far as they matter."""
    if pyarrow.types.is_struct(kind) and (place := kind.get_field_index("bytes")) >= 0:
        kind = kind.field(place).type
    elif pyarrow.types.is_struct(kind):
        return {"_type": ""}
    is_image = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
    return {"_type": "Image" if is_image else ""}


def _noted(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The features that Hugging Face's library has noted in a file."""
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _copied(
    files: Sequence[_File], columns: ImageColumns, copy: Path, progress: bool
) -> NDArray[np.int64]:
    """[n] bytes of the images of all rows, one behind the other in `copy`; -1 where a row has none.
    A finished earlier copy is reused. Raises DataError, WriteError."""
    noted = copy.with_suffix(".npy")
    if noted.exists():  # written last
        found: NDArray[np.int64] = np.load(noted, allow_pickle=False)
        return found
    lengths = array("q")
    total = sum(file.rows for file in files)
    with (
        atomic_file(copy) as target,
        ProgressBar("reading the images", total, "rows", shown=progress) as bar,
    ):
        for file in files:
            for data in file.images(columns):
                lengths.append(_NO_BYTES if data is None else target.write(data))
                bar.advance()
    result = np.array(lengths, np.int64)
    with atomic_file(noted) as target:
        np.lib.format.write_array(target, result, allow_pickle=False)
    return result


def _split(argument: str) -> tuple[str, str | None]:
    """The pattern, and the column of the labels if one is given."""
    found = re.fullmatch(r"(.+?)(?::(\w+))?", argument, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def _files(pattern: str) -> tuple[list[Path], list[str]]:
    """The files and their names. Raises DataError for one that is not there."""
    paths, root = matching_files(pattern), fixed_folder(pattern)
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no {path}; check the pattern {pattern}")
    return paths, [os.path.relpath(path, root) for path in paths]


def _digest(pattern: str) -> str:
    """See `ParquetSource.stamp`."""
    digest = hashlib.sha256()
    for path, name in zip(*_files(pattern), strict=True):
        try:
            with open_to_read(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _FOOTER))
                digest.update(repr((name, size)).encode() + file.read())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
