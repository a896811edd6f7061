"""From a run to a folder that can be used without it: `kaizen-dist export`.

    OUT/model.safetensors         the backbone, by torchvision's own names
    OUT/classifier.safetensors    the continual classifier (if the run had one)
    OUT/model.json                all that is needed to use them (description.py)
    OUT/README.md                 the model card (card.py)
    OUT/model.onnx                with --onnx

The folder appears whole or not at all, and the same run and task give the same bytes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torchvision.models.resnet import ResNet

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, cannot_write, file_sha256, make_folder
from kaizen_dist.common.run_layout import CONFIG, EXPORT
from kaizen_dist.config import Config, load
from kaizen_dist.learner.backbone import build_backbone, resolve_stem
from kaizen_dist.models import description, onnx
from kaizen_dist.models.card import model_card
from kaizen_dist.models.description import Description, Network
from kaizen_dist.models.network import BACKBONE, CLASSIFIER, DeployedModel
from kaizen_dist.runs.reader import read_results
from kaizen_dist.runs.results import Results
from kaizen_dist.runs.saved_models import SavedModel, part_of, read_model
from kaizen_dist.views.eval_view import EvalView

CARD = "README.md"


def export(
    run: Path, task: int | None = None, out: Path | None = None, with_onnx: bool = False
) -> Path:
    """Export the model of a finished task (None: the last one); returns the folder.

    `out` is RUN/export/task-0t if None. An export that is there already is replaced.

    Raises:
        UsageError: there is no such task, it is not finished, `out` holds something else, or
            ONNX is asked for and cannot be written here.
        DataError: `run` is not a run, or a file of it is damaged.
        WriteError: `out` cannot be written.
    """
    if with_onnx:
        onnx.require()
    config, results = read_run(run)
    task = finished_task(run, results, task)
    out = out or run / EXPORT / f"task-{task:02d}"
    _check_place(run / EXPORT, out)
    saved = read_model(run, task)
    head = "class_means." if config.eval.head == "ncm" else "classifier."
    backbone, classifier = (part_of(saved.state, p) for p in ("backbone.network.", head))
    with _whole_folder(out) as folder:
        files = {BACKBONE: atomic_write(folder / BACKBONE, save(backbone))}
        if classifier:
            files[CLASSIFIER] = atomic_write(folder / CLASSIFIER, save(classifier))
        about = _describe(config, results, saved, task, files)
        try:
            model = DeployedModel(about, backbone, classifier)
        except ValueError as error:
            raise DataError(
                f"{saved.path} does not fit {run / CONFIG}; "
                f"restore both from a copy of the run\n{error}"
            ) from None
        if with_onnx:
            onnx.write_onnx(model, folder / onnx.FILE)
            written = sorted(folder.glob(f"{onnx.FILE}*"))
            files |= {path.name: file_sha256(path) for path in written}
        atomic_write(folder / description.FILE, about.to_json().encode())
        card = model_card(model, config, results)
        atomic_write(folder / CARD, card.encode())
    return out


def read_run(run: Path) -> tuple[Config, Results]:
    """Configuration and results of a run. Raises DataError and UsageError where there are none."""
    if not (run / CONFIG).is_file():
        raise DataError(
            f"{run} is no run: it holds no {CONFIG}; "
            "name the folder that was given to train as --out"
        )
    results = read_results(run)
    if results is None:
        raise UsageError(f"{run}: no task is finished yet; export again when the first one is")
    return load(run / CONFIG, stored=True), results


def finished_task(run: Path, results: Results, task: int | None) -> int:
    """The task that is asked for, or the last finished one. Raises UsageError."""
    done, tasks = len(results.accuracy), results.stream.tasks
    if done == 0:
        raise UsageError(f"{run}: no task is finished yet; export again when the first one is")
    if task is None:
        return done - 1
    if not 0 <= task < tasks:
        raise UsageError(f"--task {task}: the stream of {run} has tasks 0 to {tasks - 1}")
    if task >= done:
        finished = "task 0 is" if done == 1 else f"tasks 0 to {done - 1} are"
        raise UsageError(
            f"--task {task}: not finished yet, {finished}; name one of them, or go on training"
        )
    return task


def _describe(
    config: Config, results: Results, saved: SavedModel, task: int, files: dict[str, str]
) -> Description:
    size = config.views.size
    with torch.device("meta"):
        backbone = build_backbone(config.model, size)
    residual = isinstance(backbone.network, ResNet)
    by_means = config.eval.head == "ncm"
    trained = config.classifier.enabled and not by_means
    return Description(
        network=Network(
            backbone=config.model.backbone,
            stem=resolve_stem(config.model.stem, size) if residual else "auto",
            stem_padding=config.model.stem_padding,
            features=backbone.features,
            hidden=config.classifier.hidden if trained else None,
            head="means" if by_means else "mlp",
        ),
        view=EvalView.of_size(size, config.views.mean, config.views.std),
        classes=saved.classes,
        seen=saved.seen,
        task=task,
        tasks=results.stream.tasks,
        source={
            "config_sha256": config.sha256,
            "model_sha256": saved.sha256,
            "state_sha256": results.state_sha256 if task == results.stream.tasks - 1 else None,
            "stream_fingerprint": results.stream.fingerprint,
        },
        files=files,
    )


def _check_place(ours: Path, out: Path) -> None:
    """Only what an export wrote is ever replaced, and what the run brings leads nowhere else.
    Raises UsageError."""
    for place in (ours, out):
        if place.is_symlink() and place in (out, out.parent):
            raise UsageError(f"--out {out}: {place} is a link; name the folder it leads to")
    if out.is_dir():
        if (out / description.FILE).is_file() or not any(out.iterdir()):
            return
        raise UsageError(f"--out {out} is not empty and holds no export; name another folder")
    if out.exists():
        raise UsageError(f"--out {out} is a file; name a folder")


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends, and only if it ends well."""
    path = path.resolve()
    hidden, former = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    make_folder(path.parent)
    try:
        for leftover in (hidden, former):
            shutil.rmtree(leftover, ignore_errors=True)
        hidden.mkdir()
        yield hidden
        if path.exists():
            path.rename(former)
        hidden.rename(path)
    except OSError as error:
        if former.exists() and not path.exists():
            former.rename(path)
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
