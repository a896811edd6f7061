"""`model.json`: all that is needed to use an exported model, beside its weights.

In comes a `Description`, out goes JSON, and the other way round. It is read by machines that
have none of the training stack, so it is checked by hand here rather than by a schema library.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import read_json
from kaizen_dist.learner.backbone import Stem
from kaizen_dist.views.eval_view import Channels, PlainView

FILE = "model.json"
FORMAT = "kaizen_dist.model"
FORMAT_VERSION = 1
Head: TypeAlias = Literal["mlp", "means"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
SIZE_LIMIT: Final = 16 << 20
"""Bytes of the largest model.json that is read."""
INTERPOLATION = "bicubic"
"""How images are resized (with antialiasing); there is no other way so far."""


@dataclass(frozen=True)
class Network:
    """The backbone and the head on it; an `Architecture`."""

    backbone: str
    stem: Stem
    """Of a residual network `cifar` or `imagenet`; `auto` where there is no choice."""
    stem_padding: int
    features: int
    """Width of the backbone's output."""
    hidden: int | None
    """Width of the classifier's hidden layer; null: there is none."""
    head: Head = "mlp"
    """The classifier: `mlp` has a hidden layer; `means` (nearest class mean) is one linear layer on
    features of length 1; with `mlp` and no width there is no classifier."""

    @property
    def answers(self) -> bool:
        """Whether there is a classifier."""
        return self.head == "means" or self.hidden is not None


@dataclass(frozen=True)
class Description:
    """What an exported model is, and how to use it."""

    network: Network
    view: PlainView
    classes: tuple[str, ...]
    """Names in the order of the classifier's outputs."""
    seen: tuple[int, ...]
    """The classes that can be answers; the others had not come up when this model was made."""
    task: int
    """The last task learnt, from 0."""
    tasks: int
    """Tasks of the whole stream."""
    source: dict[str, str | None]
    """Where it comes from: digests of configuration, stream, model and state."""
    files: dict[str, str]
    """sha256 in hex of each file beside model.json that holds weights."""

    def to_json(self) -> str:
        """The content of model.json."""
        content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        content |= asdict(self)
        content["view"]["interpolation"] = INTERPOLATION
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_description(folder: Path) -> Description:
    """What the export in `folder` says of itself.

    Raises:
        DataError: there is none, or it is damaged, or of another format version.
    """
    path = folder / FILE
    try:
        content = read_json(path, SIZE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder} is no exported model: it holds no {FILE}; "
            "make one with `kaizen-dist export RUN` and name the folder that it prints"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); export the model again") from None
    try:
        return _parse(content)
    except _Wrong as error:
        raise DataError(f"{path}: {error}; export the model again") from None


class _Wrong(Exception):
    """A field that is missing or does not hold what it should."""


def _parse(content: Any) -> Description:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _Wrong(f"format: is not {FORMAT!r}")
    if (found := _number(content, "format_version", 0, 2**31)) != FORMAT_VERSION:
        raise _Wrong(f"format_version: {found}, this program reads {FORMAT_VERSION}")
    network, view = (_typed(content, name, dict) for name in ("network", "view"))
    if view.get("interpolation") != INTERPOLATION:
        raise _Wrong(f"interpolation: {_short(view.get('interpolation'))} is not {INTERPOLATION!r}")
    description = Description(
        network=Network(
            backbone=_typed(network, "backbone", str),
            stem=cast(Stem, _typed(network, "stem", str)),
            stem_padding=_number(network, "stem_padding", 1, 2),
            features=_number(network, "features", 1, 65_536),
            hidden=None if network.get("hidden") is None else _number(network, "hidden", 1, 65_536),
            head=cast(Head, network.get("head", "mlp")),
        ),
        view=PlainView(
            shorter=_number(view, "shorter", 1, 8192),
            size=_number(view, "size", 1, 4096),
            mean=_channels(view, "mean", 0, 1),
            std=_channels(view, "std", 1e-3, 10),
        ),
        classes=tuple(_listed(content, "classes", str)),
        seen=tuple(_listed(content, "seen", int)),
        task=_number(content, "task", 0, 100_000),
        tasks=_number(content, "tasks", 1, 100_000),
        source=_digests(content, "source", may_lack=True),
        files=_digests(content, "files"),
    )
    _check(description)
    return description


def _check(description: Description) -> None:
    """What types alone do not say."""
    network, view = description.network, description.view
    if network.stem not in ("auto", "cifar", "imagenet"):
        raise _Wrong(f"stem: {_short(network.stem)} is none of auto, cifar, imagenet")
    if network.head not in ("mlp", "means"):
        raise _Wrong(f"head: {_short(network.head)} is none of mlp, means")
    if network.head == "means" and network.hidden is not None:
        raise _Wrong("hidden: there is no hidden layer with head means")
    if not 1 <= view.size <= view.shorter:
        raise _Wrong(f"view: needs 1 <= size <= shorter, got {view.size} and {view.shorter}")
    if description.task >= description.tasks:
        raise _Wrong(f"task: {description.task} is none of {description.tasks} tasks from 0")
    count, seen = len(description.classes), description.seen
    if len(set(description.classes)) < count:
        raise _Wrong("classes: a name stands there twice")
    if not seen or len(set(seen)) < len(seen) or not all(0 <= c < count for c in seen):
        raise _Wrong(f"seen: needs numbers of classes from 0 to {count - 1}, each once")


def _typed(content: dict[str, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Wrong(
            f"{name}: {'missing' if value is None else f'{_short(value)} is no {kind.__name__}'}"
        )
    return value


def _listed(content: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = _typed(content, name, list)
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise _Wrong(f"{name}: holds something that is no {kind.__name__}")
    return cast(list[Any], values)


def _number(content: dict[str, Any], name: str, least: int, most: int) -> int:
    value: int = _typed(content, name, int)
    if not least <= value <= most:
        raise _Wrong(f"{name}: needs {least} to {most}, got {_short(value)}")
    return value


def _channels(view: dict[str, Any], name: str, least: float, most: float) -> Channels:
    values = _typed(view, name, list)
    # NaN is in no range.
    if len(values) != 3 or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and least <= v <= most
        for v in values
    ):
        raise _Wrong(f"{name}: needs three numbers from {least} to {most}, got {_short(values)}")
    red, green, blue = map(float, values)
    return red, green, blue


def _digests(content: dict[str, Any], name: str, may_lack: bool = False) -> dict[str, Any]:
    values: dict[str, Any] = _typed(content, name, dict)
    for key, value in values.items():
        if not (isinstance(value, str) and _SHA256.fullmatch(value)) and not (
            may_lack and value is None
        ):
            raise _Wrong(f"{name}.{key[:80]}: {_short(value)} is no sha256 in hex")
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
