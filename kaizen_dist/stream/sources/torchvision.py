"""Any labelled image data set of torchvision as a source.

The source has the data set's own class numbers, and its own order within each class. Images that
the data set keeps as files keep their bytes; pixels are encoded as PNG, without loss.

The parts are selected by `train=` or by `split=`, whichever the constructor takes; a data set
that takes neither has no validation part. A data set that is not in its root is downloaded, if
torchvision can.
"""

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.files.file_tree import SourceFiles
from kaizen_dist.stream.images import BadImageError
from kaizen_dist.stream.sources.base import (
    NO_DOMAIN,
    Images,
    Source,
    SourceKind,
    absolute,
    encode_png,
)

# Names of the parts in the data sets, in order of preference.
_TRAIN_SPLITS = ("train", "trainval", "train-standard")
_VAL_SPLITS = ("test", "val", "valid")

# Attributes that hold pairs of file and label, or the two apart.
_PAIRS = ("samples", "_samples", "imgs")
_PATHS = ("_image_files", "_images")
_LABELS = ("targets", "labels", "_labels")

_PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}


class TorchvisionSource(SourceKind):
    """A data set of `torchvision.datasets`, by its class name and root."""

    usage = "torchvision:NAME:ROOT (e.g. torchvision:CIFAR10:data)"
    pattern = r"\w+:.+"

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:  # noqa: ARG002
        """The training part of a data set, then its validation part where it has one.

        Raises UsageError for an unknown name or a data set without a training part, DataError when
        it is not in its root and cannot be downloaded, or has not one class label per image.
        """
        name, _, root = argument.partition(":")
        parts = _open_parts(name, Path(root))
        raw = [_read_labels(part, progress) for part in parts]
        classes, labels = _number_classes(parts, raw)
        order = [np.argsort(of_part, kind="stable") for of_part in labels]
        part_of = np.repeat(np.arange(len(parts)), [len(rows) for rows in order])
        return Source(
            spec=spec,
            classes=classes,
            domains=[],
            labels=np.concatenate([labels[p][rows] for p, rows in enumerate(order)]),
            domains_of=np.full(len(part_of), NO_DOMAIN),
            is_val=part_of > 0,
            images=_images(parts, part_of, np.concatenate(order)),
            told=tuple(
                f"{part} is the {role} part: {len(rows):,} images"
                for part, role, rows in zip(parts, ("training", "validation"), order, strict=False)
            ),
        )

    def resolve(self, argument: str) -> str:
        """As `SourceKind.resolve`."""
        name, _, root = argument.partition(":")
        return f"{name}:{absolute(root)}"


@dataclass(frozen=True)
class _Part:
    """One part of a data set; a pickle holds only its place, and it is opened again when needed."""

    name: str
    root: Path
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def data(self) -> Any:
        """The torchvision data set. Raises DataError when it is not there or damaged."""
        data_set = _class_named(self.name)
        try:
            return data_set(self.root, **self.options)
        except _UNKNOWN_SPLIT:
            raise
        except Exception as error:  # every data set has its own way to say "not there"
            if not _accepts(data_set, "download"):
                raise DataError(
                    f"{self}: torchvision cannot open it and knows no download: {error}"
                ) from error
        try:
            return data_set(self.root, **self.options, download=True)
        except Exception as error:
            raise DataError(
                f"{self}: not there, and the download failed ({error}); run where there is a "
                "network, or put the data set's files there as torchvision documents"
            ) from error

    def __str__(self) -> str:
        part = "".join(f" {value}" for value in self.options.values() if isinstance(value, str))
        return f"torchvision's {self.name}{part} in {self.root}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Part, (self.name, self.root, self.options)


_UNKNOWN_SPLIT = ValueError
"""Raised by torchvision for a `split=` that a data set does not have."""


def _class_named(name: str) -> Any:
    from torchvision import datasets

    if name not in datasets.__all__ or not _accepts(vars(datasets)[name], "root"):
        near = difflib.get_close_matches(name, datasets.__all__, n=1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
        raise UsageError(f"torchvision has no data set {name!r} that is read from a root{hint}")
    return vars(datasets)[name]


def _accepts(data_set: Any, parameter: str) -> bool:
    return parameter in inspect.signature(data_set).parameters


def _open_parts(name: str, root: Path) -> list[_Part]:
    data_set = _class_named(name)
    if _accepts(data_set, "train"):
        return [_Part(name, root, {"train": True}), _Part(name, root, {"train": False})]
    if not _accepts(data_set, "split"):
        return [_Part(name, root)]
    train = _first_split(name, root, _TRAIN_SPLITS)
    if train is None:
        raise UsageError(
            f"torchvision's {name} has no split named {' or '.join(_TRAIN_SPLITS)}: lay its "
            "images out as folders and give folder:PATH"
        )
    val = _first_split(name, root, _VAL_SPLITS)
    return [train] if val is None else [train, val]


def _first_split(name: str, root: Path, splits: Sequence[str]) -> _Part | None:
    """The first of these splits that the data set has, with labels."""
    for split in splits:
        part = _Part(name, root, {"split": split})
        try:
            label = part.data[0][1]
        except _UNKNOWN_SPLIT:
            continue
        if label is not None:
            return part
    return None


def _read_labels(part: _Part, progress: bool) -> NDArray[np.int64]:
    """[n] the labels of a part, from the attribute that holds them, or one by one."""
    data = part.data
    if len(data) == 0:
        raise DataError(f"{part}: holds no images")
    held = vars(data)
    found: Any = [held[name] for name in _LABELS if len(held.get(name, ())) == len(data)]
    found += [[pair[1] for pair in held[name]] for name in _PAIRS if name in held]
    labels = np.asarray(found[0] if found else _read_one_by_one(part, progress))
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{part}: has not one class label an image, so there is no class to learn")
    return labels.astype(np.int64)


def _read_one_by_one(part: _Part, progress: bool) -> list[Any]:
    labels = []
    with ProgressBar(f"reading the labels of {part}", len(part.data), shown=progress) as meter:
        for i in range(len(part.data)):
            labels.append(part.data[i][1])
            meter.advance()
    return labels


def _number_classes(
    parts: list[_Part], labels: list[NDArray[np.int64]]
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Names of the classes that have training images, and all labels as indices into them."""
    values = np.unique(labels[0])
    for part, of_part in zip(parts, labels, strict=True):
        if len(strange := np.setdiff1d(of_part, values)):
            raise DataError(f"{part}: class {strange[0]} has no training images")
    names = getattr(parts[0].data, "classes", None) or []
    known = len(names) > values.max() and values.min() >= 0
    classes = [_class_name(names[v]) if known else str(v) for v in values]
    return classes, [np.searchsorted(values, of_part) for of_part in labels]


def _class_name(name: Any) -> str:
    """ImageNet names a class by a tuple of synonyms."""
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _images(parts: list[_Part], part_of: NDArray[np.int64], rows: NDArray[np.int64]) -> Images:
    paths = [_paths_of(part.data) for part in parts]
    if all(of_part is not None for of_part in paths):
        names = [paths[p][row] for p, row in zip(part_of, rows, strict=True)]
        return SourceFiles(Path("/"), names)
    return _Pixels(parts, part_of, rows)


def _paths_of(data: Any) -> list[str] | None:
    """[n] absolute file names of the images, where the data set keeps them as files."""
    held = vars(data)
    lists = [[pair[0] for pair in held[name]] for name in _PAIRS if name in held]
    lists += [list(held[name]) for name in _PATHS if name in held]
    for paths in lists:
        if len(paths) == len(data) and isinstance(paths[0], str | Path):
            return [str(Path(path).absolute()) for path in paths]
    return None


@dataclass(frozen=True)
class _Pixels:
    """Images that a data set keeps as pixels; image i is row `rows[i]` of part `part_of[i]`."""

    parts: list[_Part]
    part_of: NDArray[np.int64]
    rows: NDArray[np.int64]

    def read(self, i: int) -> bytes:
        part = self.parts[self.part_of[i]]
        try:
            image = part.data[int(self.rows[i])][0]
        except (OSError, ValueError, SyntaxError) as error:
            raise BadImageError(str(error)) from error
        if not isinstance(image, Image.Image):
            raise DataError(f"{part}: gives {type(image).__name__}, not images")
        return encode_png(image if image.mode in _PNG_MODES else image.convert("RGB"))

    def name_of(self, i: int) -> str:
        return f"{self.parts[self.part_of[i]]}, number {self.rows[i]}"
