"""The functions of `import kaizen_dist as kd`: what the verbs of the command do, for Python."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.common.errors import DataError, KaizenError
from kaizen_dist.common.files import read_bytes
from kaizen_dist.common.io_watchdog import report_stalls
from kaizen_dist.common.run_layout import CONFIG
from kaizen_dist.config import Config, load
from kaizen_dist.distributed.context import start
from kaizen_dist.distributed.spawn import launch
from kaizen_dist.models import evaluate as models_evaluate
from kaizen_dist.models import export as models_export
from kaizen_dist.models.evaluate import Evaluation, ProbeName
from kaizen_dist.models.network import DeployedModel
from kaizen_dist.models.network import load_model as read_model
from kaizen_dist.runs import checks
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.stream.images import MOST_BYTES, decode, in_rgb
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.training import run as training


def load_config(config: str | Path, *overrides: str) -> Config:
    """Read a configuration file, or a shipped one by its name, e.g. "digits".

    Args:
        config: path or name.
        overrides: "section.key=value" each, e.g. "train.epochs=10".

    Raises:
        UsageError: listing every unknown key, wrong type and contradiction.
    """
    return load(Path(config), overrides)


def train(
    config: Config | str | Path,
    stream: Stream | str | Path,
    out: str | Path,
    *,
    procs: int = 1,
    until: int | None = None,
    follow: float | None = None,
) -> Results:
    """Train task after task; a run that is in `out` already goes on from its last checkpoint.

    Args:
        config: from `load_config`, or what that takes.
        stream: from `prepare`, or its folder or URL.
        out: folder of the run.
        procs: ranks on this machine. One trains in this process (under torchrun or srun: as the
            rank that it is); several are processes of their own.
        until: stop after this many tasks.
        follow: wait for further tasks of the stream, and look every so many seconds.

    Returns:
        The results so far, as in RUN/results.json.

    Raises:
        UsageError: configuration, stream, folder and ranks do not fit together.
        DataError: an image cannot be read.
        WriteError: the folder cannot be written.
        Preempted: a signal stopped the run; everything is saved.
        KaizenError: training failed; on several ranks with their exit code.
    """
    settings = config if isinstance(config, Config) else load_config(config)
    opened = stream if isinstance(stream, Stream) else Stream.open(stream, settings.stream)
    out = Path(out)
    report_stalls(settings.views.stall_seconds)
    if procs == 1:
        with start(settings.parallel, settings.train.threads) as context:
            return training.train(settings, opened, out, context, until=until, follow=follow)
    checks.check(settings, opened, procs)
    checks.check_folder(out, settings, opened)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        file.write_text(settings.to_yaml(), encoding="utf-8")
        place = ["--stream", str(opened.place), "--out", str(out), "--no-summary"]
        last = [] if until is None else ["--until", str(until)]
        last += [] if follow is None else ["--follow", "--poll", str(follow)]
        code = launch(["train", str(file), *place, *last], procs)
    if code:
        error = KaizenError(f"training on {procs} ranks ended with exit code {code}")
        error.exit_code = code
        raise error
    results = read_results(out)
    assert results is not None, "a training that ended well has results"
    return results


def evaluate(
    run: str | Path,
    task: int | None = None,
    *,
    probe: ProbeName = "classifier",
    stream: str | Path | None = None,
) -> Evaluation:
    """Evaluate the model after a finished task (None: the last) on a stream (None: the run's own).

    `probe` is the run's classifier, or "linear" or "knn", which learn from the stream's labels.

    Raises:
        UsageError: no such task, or nothing for this probe.
        DataError: run or stream is missing or damaged.
    """
    return models_evaluate.evaluate(Path(run), task, probe, stream)


def export(
    run: str | Path, task: int | None = None, out: str | Path | None = None, onnx: bool = False
) -> Path:
    """Export the model after a finished task (None: the last); returns the folder.

    `out` is RUN/export/task-0t if None; `onnx` writes model.onnx too. Raises as `evaluate`, and
    WriteError if the folder cannot be written.
    """
    return models_export.export(Path(run), task, None if out is None else Path(out), onnx)


def load_model(folder: str | Path) -> DeployedModel:
    """The model in a folder that `export` made, in `eval()` mode on the CPU.

    Raises:
        DataError: a file is missing or damaged, or they do not fit together.
    """
    return read_model(Path(folder))


@torch.inference_mode()
def embed(
    model: DeployedModel,
    images: Sequence[str | Path | Image.Image | NDArray[np.uint8]],
    *,
    batch_size: int = 256,
) -> NDArray[np.float32]:
    """Features float32 [n, d] of n images.

    Args:
        model: from `load_model`, on any device.
        images: paths, Pillow images, or uint8 arrays [h, w, 3]; resized and cropped as in the
            run's evaluation.
        batch_size: images of one forward pass.

    Raises:
        DataError: a file cannot be read or decoded.
    """
    view, device = model.description.view, model.unseen.device
    features = [np.empty((0, model.description.network.features), np.float32)]
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        pixels = [view.pixels(_picture(image, model.description.upright)) for image in part]
        output = model.backbone(view.of_pixels(pixels).to(device))
        features.append(output.float().cpu().numpy())
    return np.concatenate(features)


def _picture(image: str | Path | Image.Image | NDArray[np.uint8], upright: bool) -> Image.Image:
    """Any kind of image in 8-bit RGB; files turned as their EXIF orientation says."""
    if isinstance(image, Image.Image):
        return in_rgb(image)
    if isinstance(image, np.ndarray):
        return in_rgb(Image.fromarray(image))
    try:
        return decode(read_bytes(Path(image), MOST_BYTES), upright)
    except OSError as error:
        raise DataError(f"{image}: cannot be read: {error.strerror or error}") from None
