"""Predictions of an exported model: `kaizen-dist predict`.

A model and paths of images give an `Answer` for each, in their order, on the view of a run's own
evaluation. An image that cannot be decoded gets an answer with the reason, and does not keep the
others from theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import read_bytes
from kaizen_dist.models.network import DeployedModel
from kaizen_dist.stream.files.folders import Kind, walk
from kaizen_dist.stream.images import MOST_BYTES, decode, is_image_name


@dataclass(frozen=True)
class Answer:
    """The prediction for one image."""

    image: Path
    ranked: tuple[tuple[str, float], ...]
    """(class, probability), the most probable first."""
    problem: str | None = None
    """Why there is no prediction."""

    def __str__(self) -> str:
        named = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in self.ranked)
        return f"{_shown(self.image)}: {named}"

    def to_json(self) -> dict[str, Any]:
        """As plain data: `image` with `classes`, or with `error`."""
        image = {"image": _shown(self.image)}
        if self.problem is not None:
            return image | {"error": self.problem}
        ranked = [{"class": name, "probability": value} for name, value in self.ranked]
        return image | {"classes": ranked}


def images_at(places: Sequence[Path]) -> list[Path]:
    """The files among `places` as they are, and in place of folders all images below them,
    by their file name extensions and in the order of their paths, as `prepare` finds them.

    Raises:
        UsageError: a place that does not exist, or a folder without an image, or with one in it
            that cannot be opened.
    """
    found: list[Path] = []
    problems: list[str] = []
    for place in places:
        if place.is_dir():
            below = _images_below(place, problems)
            found += below
            if not below:
                problems.append(f"{_shown(place)}: no image in this folder")
        elif place.exists():
            found.append(place)
        else:
            problems.append(f"{_shown(place)}: no such file")
    if problems:
        raise UsageError("\n".join(["name images, or folders of images", *problems]))
    return found


def predict(
    model: DeployedModel,
    images: Sequence[Path],
    top: int = 3,
    batch_size: int = 32,
    progress: bool = True,
) -> Iterator[Answer]:
    """The `top` most probable classes of each image, `batch_size` images at a time.

    Raises:
        UsageError: the model has no classifier.
    """
    with ProgressBar("predict", len(images), shown=progress) as meter:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            yield from _answers(model, part, top)
            meter.advance(len(part))


def raise_if_broken(answers: Sequence[Answer]) -> None:
    """Raises DataError naming every image without a prediction."""
    broken = [f"  {_shown(a.image)}: {a.problem}" for a in answers if a.problem is not None]
    if broken:
        listed = "\n".join(broken)
        raise DataError(f"{len(broken)} of {len(answers)} images cannot be decoded\n{listed}")


def _answers(model: DeployedModel, images: Sequence[Path], top: int) -> Iterator[Answer]:
    about = model.description
    pixels: dict[int, NDArray[np.uint8]] = {}
    problems: dict[int, str] = {}
    for i, path in enumerate(images):
        # One image at a time is decoded; a view of it is kept.
        try:
            pixels[i] = about.view.pixels(decode(read_bytes(path, MOST_BYTES), about.upright))
        except OSError as error:
            problems[i] = error.strerror or str(error)
    rows = dict(zip(pixels, _probabilities(model, list(pixels.values())), strict=True))
    for i, path in enumerate(images):
        if i in problems:
            yield Answer(path, (), problems[i])
            continue
        ranked = sorted(about.seen, key=rows[i].__getitem__, reverse=True)[:top]
        yield Answer(path, tuple((about.classes[c], rows[i][c]) for c in ranked))


@torch.inference_mode()
def _probabilities(model: DeployedModel, pixels: Sequence[NDArray[np.uint8]]) -> list[list[float]]:
    if not pixels:
        return []
    probabilities, _ = model(model.description.view.of_pixels(pixels))
    if not probabilities.isfinite().all():
        raise DataError(
            "the model gives values that are no probabilities (NaN): its weights are beyond "
            "what float32 can compute with; export another task, or train again"
        )
    rows: list[list[float]] = probabilities.tolist()
    return rows


def _images_below(folder: Path, problems: list[str]) -> list[Path]:
    """All images, unreadable ones included; folders that cannot be opened go to `problems`."""
    found = []
    try:
        for name, kind, _, why in walk(folder):
            if kind is Kind.CLOSED:
                problems.append(f"{_shown(folder / name)}: {why}")
            elif kind in (Kind.FILE, Kind.ODD) and is_image_name(name.rpartition("/")[2]):
                found.append(folder / name)
    except OSError as error:
        problems.append(f"{_shown(folder)}: cannot be opened: {error.strerror}")
    return sorted(found)


def _shown(path: Path) -> str:
    """A path as text that every encoding and JSON can hold."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
