"""`model.json`: everything needed to use an exported model, beside its weights."""

import json
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import parse_json, read_bytes
from kaizen_dist.common.inventory import reasons
from kaizen_dist.learner.backbone import Stem
from kaizen_dist.views.eval_view import EvalView

FILE = "model.json"
FORMAT_VERSION = 1
Head: TypeAlias = Literal["mlp", "means"]
SIZE_LIMIT: Final = 16 << 20
"""Bytes of the largest model.json that is read."""
INTERPOLATION = "bicubic"
"""Resizing method (with antialiasing) of the evaluation view."""

T = TypeVar("T", bound=tuple[Hashable, ...])


def _distinct(values: T) -> T:
    if len(set(values)) < len(values):
        raise ValueError("holds a value twice")
    return values


_Width = Annotated[int, Field(ge=1, le=65_536)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Distinct = AfterValidator(_distinct)


@dataclass(frozen=True)
class Network:
    """The backbone and the head on it; an `Architecture`."""

    backbone: str
    stem: Stem
    """Of a residual network `cifar` or `imagenet`; `auto` for other backbones."""
    stem_padding: Annotated[int, Field(ge=1, le=2)]
    features: _Width
    """Width of the backbone's output."""
    hidden: _Width | None = None
    """Width of the classifier's hidden layer; null: there is none."""
    head: Head = "mlp"
    """The classifier: `mlp` has a hidden layer; `means` (nearest class mean) is one linear layer on
    features of length 1; with `mlp` and no width there is no classifier."""

    @property
    def has_classifier(self) -> bool:
        return self.head == "means" or self.hidden is not None


@dataclass(frozen=True)
class Description:
    """An exported model, and how to use it."""

    network: Network
    view: EvalView
    classes: Annotated[tuple[str, ...], _Distinct]
    """Names in the order of the classifier's outputs."""
    seen: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), _Distinct]
    """The classes of the tasks learnt so far; only these are predicted."""
    task: Annotated[int, Field(ge=0, le=100_000)]
    """The last task learnt, from 0."""
    tasks: Annotated[int, Field(ge=1, le=100_000)]
    """Tasks of the whole stream."""
    source: dict[str, _Sha256 | None]
    """Origin: digests of configuration, stream, model and state."""
    files: dict[str, _Sha256]
    """sha256 in hex of each file beside model.json that holds weights."""
    upright: bool = False
    """Whether images are turned as their EXIF orientation says before they are resized."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Description":
        network, view, count = self.network, self.view, len(self.classes)
        if network.head == "means" and network.hidden is not None:
            raise ValueError("network.hidden: head means has no hidden layer")
        if view.size > view.shorter:
            raise ValueError(f"view.size: {view.size} is larger than shorter={view.shorter}")
        if self.task >= self.tasks:
            raise ValueError(f"task: {self.task} is not one of {self.tasks} tasks from 0")
        if max(self.seen) >= count:
            raise ValueError(f"seen: {max(self.seen)} is not one of {count} classes from 0")
        return self

    def to_json(self) -> str:
        """The content of model.json."""
        content: dict[str, Any] = {"format": "kaizen_dist.model", "format_version": FORMAT_VERSION}
        content |= asdict(self)
        content["view"]["interpolation"] = INTERPOLATION
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _known_version(version: int) -> int:
    if version != FORMAT_VERSION:
        raise ValueError(f"this program reads {FORMAT_VERSION}")
    return version


@dataclass(frozen=True)
class _FormatOfView:
    interpolation: Literal["bicubic"]


@dataclass(frozen=True)
class _Format:
    """What is fixed in a description of this format version."""

    format: Literal["kaizen_dist.model"]
    format_version: Annotated[int, AfterValidator(_known_version)]
    view: _FormatOfView


_FORMAT: Final = TypeAdapter(_Format)
_DESCRIPTION: Final = TypeAdapter(Description)


def read_description(folder: Path) -> Description:
    """The description of the export in `folder`.

    Raises:
        DataError: it is missing, damaged, or of another format version.
    """
    path = folder / FILE
    try:
        data = read_bytes(path, SIZE_LIMIT)
        parse_json(data)
        _FORMAT.validate_json(data, strict=True)
        return _DESCRIPTION.validate_json(data, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder} is no exported model: it holds no {FILE}; "
            "make one with `kaizen-dist export RUN` and name the folder that it prints"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {reasons(error)}; export the model again") from None
