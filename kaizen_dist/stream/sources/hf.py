"""`hf:NAME`: a data set of the Hugging Face Hub, fetched and kept by the library `datasets`.

hf:ylecun/mnist                  image and label
hf:uoft-cs/cifar100:fine_label   labels are another column
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import read_bytes
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files.image_columns import ChosenRows, ImageColumns, roles
from kaizen_dist.stream.files.listing import Faults
from kaizen_dist.stream.images import MOST_BYTES, BadImageError
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind


class HfSource(SourceKind):
    """The splits of a data set, as the parts of `folder:PATH`."""

    usage = "hf:NAME or hf:NAME:COLUMN (of the labels)"
    pattern = r"[^:]+(:\w+)?"

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:  # noqa: ARG002
        """As `SourceKind.open`. Raises DataError too where it cannot be fetched."""
        name, _, label = argument.partition(":")
        splits = sorted(_load(name))
        is_val_split = roles(splits)
        used = [s for s, part in zip(splits, is_val_split, strict=True) if part is not None]
        features = _load(name)[used[0]].features.to_dict()
        columns = ImageColumns.choose(spec, features, label or None)
        pictures = _HubImages(name, columns.image, used)
        sizes = [len(data) for data in pictures.data]
        values: list[Any] = [None] * sum(sizes)
        if columns.label is not None:
            values = [value for data in pictures.data for value in data[columns.label]]
        of_split = np.array([part for part in is_val_split if part is not None], bool)
        is_val, everything = np.repeat(of_split, sizes), np.ones(len(values), bool)
        pictures.rows = np.arange(len(values))
        numbered, faults = columns.number(spec, values), Faults()
        chosen = ChosenRows.of(spec, numbered, is_val, everything, pictures.name_of, faults)
        pictures.rows = chosen.rows
        left_out = [f"{split} is left out" for split in splits if split not in used]
        return Source(
            spec=spec,
            classes=chosen.classes,
            domains=[],
            labels=chosen.labels,
            domains_of=np.full(len(chosen.rows), NO_DOMAIN),
            is_val=chosen.is_val,
            images=pictures,
            told=(f"{plural(len(used), 'split')}, {chosen.told()}", *left_out),
            faults=faults.lines(),
        )


@dataclass
class _HubImages:
    """Rows of splits, one behind the other; a pickle holds only their place."""

    name: str
    column: str
    splits: list[str]
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @cached_property
    def data(self) -> list[Any]:
        """The splits, with encoded images."""
        encoded = datasets.Image(decode=False)
        found = _load(self.name)
        return [found[split].cast_column(self.column, encoded) for split in self.splits]

    def _place(self, i: int) -> tuple[int, int]:
        """The split of image `i`, and its row there."""
        row = int(self.rows[i])
        for split, data in enumerate(self.data):
            if row < len(data):
                return split, row
            row -= len(data)
        raise IndexError(i)

    def read(self, i: int) -> bytes:
        split, row = self._place(i)
        image = self.data[split][row][self.column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise BadImageError("its row has no image")
        if image["bytes"] is not None:
            return bytes(image["bytes"])
        try:
            return read_bytes(Path(image["path"]), MOST_BYTES)
        except OSError as error:
            raise DataError(f"{image['path']}: cannot be read: {error.strerror}") from error

    def name_of(self, i: int) -> str:
        split, row = self._place(i)
        return f"{self.splits[split]}:{row}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "data"}


def _load(name: str) -> Any:
    """The splits by name. Raises DataError."""
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # it raises nearly every kind
        raise DataError(
            f"hf:{name}: cannot be opened ({type(error).__name__}: {error}); run where there is a "
            "network, or download its Parquet files and give parquet:PATTERN"
        ) from error
