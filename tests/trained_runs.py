"""Runs really trained for a few steps, one of each kind of backbone, and images to name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from kaizen_dist.cli import app
from kaizen_dist.runs.saved_models import write_model
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.training import trainer

TASKS = 2
QUICK = [
    "train.max_steps=2",
    "train.threads=1",
    "train.batch_size=16",
    "replay.batch_size=8",
    "ssl.hidden=32",
    "ssl.predictor_hidden=32",
    "classifier.hidden=24",
    "views.backend=torch",
    "eval.forward_transfer=false",
]
KINDS = {
    "cifar": ["model.backbone=resnet10", "views.size=8", "eval.bank=100"],
    "imagenet": [
        "model={backbone: resnet18, stem: imagenet}",
        "views.size=32",
        "eval.knn=false",
    ],
    "vit": [
        "model={backbone: vit_ti_4, stem: auto, frozen_patch: true}",
        "views.size=8",
        "eval.knn=false",
    ],
}


@dataclass(frozen=True)
class Trained:
    """A finished run, and the learner's state as it was after each task."""

    path: Path
    states: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def stream(tmp_path_factory) -> Stream:
    """The embedded digits in two tasks of five classes."""
    folder = tmp_path_factory.mktemp("streams") / "two"
    return prepare("digits", folder, tasks=TASKS, progress=False)


@pytest.fixture(scope="session")
def train(stream, configs) -> Callable[..., Trained]:
    """`train(run, *overrides)`: the command itself, in this process."""

    def run_it(run: Path, *overrides: str) -> Trained:
        states: list[dict[str, torch.Tensor]] = []

        def noted(run, task, state, *more):
            states.append({name: t.detach().clone() for name, t in state.items()})
            return write_model(run, task, state, *more)

        config = str(configs / "digits.yaml")
        arguments = ["train", config, "--stream", str(stream.root), "--out", str(run)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "write_model", noted)
            CliRunner().invoke(app, [*arguments, *QUICK, *overrides], catch_exceptions=False)
        return Trained(run, states)

    return run_it


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory) -> Callable[[str], Trained]:
    """`trained(kind)`: a finished run of one of `KINDS`; do not change it."""
    made: dict[str, Trained] = {}

    def run_of(kind: str) -> Trained:
        if kind not in made:
            made[kind] = train(tmp_path_factory.mktemp("runs") / kind, *KINDS[kind])
        return made[kind]

    return run_of


@pytest.fixture(scope="session")
def digit_files(stream, tmp_path_factory) -> list[list[tuple[Path, str]]]:
    """For each task its validation images as files, each with the name of its class."""
    folder = tmp_path_factory.mktemp("digits")
    tasks = []
    for task in range(len(stream)):
        split = stream.split(task, "val")
        named = []
        for row, label in enumerate(split.labels):
            path = folder / f"{task}-{row:03d}.png"
            path.write_bytes(split.read(row))
            named.append((path, stream.classes[label]))
        tasks.append(named)
    return tasks


@pytest.fixture(scope="session")
def odd_files(tmp_path_factory) -> list[Path]:
    """Noise of several shapes, modes and formats."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)

    def noise(*shape: int, limit: int = 256, kind: type = np.uint8):
        return rng.integers(0, limit, shape).astype(kind)

    images = {
        "wide.png": Image.fromarray(noise(37, 90, 3)),
        "tall.jpg": Image.fromarray(noise(120, 41, 3)),
        "grey.bmp": Image.fromarray(noise(64, 64)),
        "deep.png": Image.fromarray(noise(50, 40, limit=65536, kind=np.uint16)),
        "clear.webp": Image.fromarray(noise(33, 33, 4)),
        "tiny.png": Image.fromarray(noise(3, 5, 3)),
        "palette.gif": Image.fromarray(noise(40, 60, 3)).quantize(16),
    }
    for name, image in images.items():
        image.save(folder / name)
    return [folder / name for name in images]
