"""Which columns of a Hugging Face data set are its images and labels, and which rows which part."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.files.class_folders import ROLES, TEST, TRAIN, VAL
from kaizen_dist.stream.files.file_tree import storable
from kaizen_dist.stream.files.listing import Faults, counted, fit_to_validate
from kaizen_dist.stream.files.name_list import NameColumn, renumbered
from kaizen_dist.stream.files.table_file import as_text
from kaizen_dist.stream.index import UNLABELLED

_IMAGES, _LABEL = ("image", "img"), "label"


@dataclass(frozen=True)
class ImageColumns:
    """The columns that are used."""

    image: str
    label: str | None
    """None: all images are unlabelled."""
    classes: Sequence[str] | None
    """Names of the classes, where labels are numbers of these."""

    @classmethod
    def choose(
        cls, where: str, features: Mapping[str, Mapping[str, Any]], label: str | None
    ) -> "ImageColumns":
        """By the features that Hugging Face's library notes for each column; `label`: the column
        that the user wants. Raises DataError where it cannot be decided."""
        images = [name for name, about in features.items() if about.get("_type") == "Image"]
        image = next((name for name in _IMAGES if name in images), "".join(images[:1]))
        if not image or (len(images) > 1 and image not in _IMAGES):
            raise DataError(
                f"{where}: {len(images)} columns of images, one is due: bytes of encoded images, "
                f"or image.bytes; its columns are {', '.join(features)}"
            )
        labels = [name for name, about in features.items() if about.get("_type") == "ClassLabel"]
        if label is not None:
            if label not in features or label == image:
                raise DataError(
                    f"{where}: has no column {label} for labels; there are {', '.join(features)}"
                )
        elif _LABEL in features:
            label = _LABEL
        elif len(labels) > 1:
            raise DataError(
                f"{where}: has several columns of labels; name one behind the source, "
                f":{labels[0]} or :{' or :'.join(labels[1:])}"
            )
        else:
            label = labels[0] if labels else None
        names = features[label].get("names") if label else None
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return cls(image, label, names if known else None)

    def number(self, where: str, values: Iterable[Any]) -> tuple[list[str], NDArray[np.int64]]:
        """Names of the classes in use, and labels [n]; None, and -1 among numbers of classes, are
        no label. Raises DataError for a label that is none of the classes."""
        if self.classes is None:
            column = NameColumn()
            for value in values:
                column.append(as_text(value).strip())
            return column.numbered()
        labels = np.array([UNLABELLED if value is None else value for value in values])
        count = len(self.classes)
        if labels.dtype.kind not in "iu" or labels.min() < -1 or labels.max() >= count:
            raise DataError(
                f"{where}: column {self.label}: labels are not numbers of its {count} classes"
            )
        return renumbered(self.classes, labels.astype(np.int64))


@dataclass(frozen=True)
class ChosenRows:
    """Rows that become images, [n] each, in the order of a source."""

    rows: NDArray[np.int64]
    """Their numbers."""
    classes: list[str]
    labels: NDArray[np.int64]
    is_val: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        spec: str,
        numbered: tuple[Sequence[str], NDArray[np.int64]],
        is_val: NDArray[np.bool_],
        kept: NDArray[np.bool_],
        name_of: Callable[[int], str],
        faults: Faults,
    ) -> "ChosenRows":
        """Of the rows [m] that are `kept` those that are fit, by part and label. `numbered`: names
        of the classes, and labels [m]. Raises DataError where none is left."""
        classes, labels = numbered
        kept = fit_to_validate(classes, labels, is_val, kept, name_of, faults)
        if not kept.any():
            raise DataError("\n  ".join((f"{spec}: no images in it", *faults.lines())))
        rows = np.flatnonzero(kept)
        rows = rows[np.lexsort((labels[rows], is_val[rows]))]
        used, own = renumbered(classes, labels[rows])
        return cls(rows, list(map(storable, used)), own, is_val[rows])

    def told(self) -> str:
        """A line for the user."""
        return counted(len(self.classes), self.labels, self.is_val)


def part_of(name: str) -> str | None:
    """The part that a split or a file of this name is, e.g. train-00000-of-00002.parquet."""
    return ROLES.get(re.split(r"[-_.\[]", name)[0].lower())


def roles(names: Sequence[str]) -> list[bool | None]:
    """Of each file or split whether it is validated; None: left out. As the parts of `folder:`,
    and all of them are trained on where none is called train."""
    parts = [part_of(name) for name in names]
    if TRAIN not in parts:
        return [False] * len(names)
    left_out = TEST if VAL in parts else None
    return [None if left_out and p == left_out else p in (VAL, TEST) for p in parts]
