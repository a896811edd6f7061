"""Export of a finished task's model to a folder of plain files: `kaizen-dist export`.

    OUT/model.safetensors         the backbone, by torchvision's (or timm's) own names
    OUT/classifier.safetensors    the continual classifier (if the run had one)
    OUT/model.json                everything needed to use them (description.py)
    OUT/README.md                 the model card (card.py)
    OUT/model.onnx                with --onnx

The folder is written atomically, and the same run and task give the same bytes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torchvision.models.resnet import ResNet

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import atomic_write, file_sha256, make_folder, writing
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
    config, results, task = finished_task(run, task)
    out = out or run / EXPORT / f"task-{task:02d}"
    _check_place(run / EXPORT, out)
    saved = read_model(run, task)
    head = "class_means." if config.eval.head == "ncm" else "classifier."
    backbone, classifier = (part_of(saved.state, p) for p in ("backbone.network.", head))
    with _atomic_folder(out) as folder:
        parts = {BACKBONE: backbone} | ({CLASSIFIER: classifier} if classifier else {})
        files = {name: atomic_write(folder / name, save(part)) for name, part in parts.items()}
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
            for path in sorted(folder.glob(f"{onnx.FILE}*")):
                files[path.name] = file_sha256(path)
        atomic_write(folder / description.FILE, about.to_json().encode())
        atomic_write(folder / CARD, model_card(model, config, results).encode())
    return out


def finished_task(run: Path, task: int | None) -> tuple[Config, Results, int]:
    """Configuration and results of a run, and a finished task (None: the last one).

    Raises:
        UsageError: there is no such task, or it is not finished.
        DataError: `run` is not a run, or a file of it is damaged.
    """
    if not (run / CONFIG).is_file():
        raise DataError(
            f"{run} is no run: it holds no {CONFIG}; "
            "name the folder that was given to train as --out"
        )
    results = read_results(run)
    if results is None or not results.accuracy:
        raise UsageError(f"{run}: no task is finished yet; export again when the first one is")
    done, tasks = len(results.accuracy), results.stream.tasks
    task = done - 1 if task is None else task
    if not 0 <= task < tasks:
        raise UsageError(f"--task {task}: the stream of {run} has tasks 0 to {tasks - 1}")
    if task >= done:
        finished = "task 0 is" if done == 1 else f"tasks 0 to {done - 1} are"
        raise UsageError(
            f"--task {task}: not finished yet, {finished}; name one of them, or go on training"
        )
    return load(run / CONFIG, stored=True), results, task


def _describe(
    config: Config, results: Results, saved: SavedModel, task: int, files: dict[str, str]
) -> Description:
    views, by_means = config.views, config.eval.head == "ncm"
    with torch.device("meta"):
        backbone = build_backbone(config.model, views.size)
    residual = isinstance(backbone.network, ResNet)
    trained = config.classifier.enabled and not by_means
    last = task == results.stream.tasks - 1
    return Description(
        network=Network(
            backbone=config.model.backbone,
            stem=resolve_stem(config.model.stem, views.size) if residual else "auto",
            stem_padding=config.model.stem_padding,
            features=backbone.features,
            hidden=config.classifier.hidden if trained else None,
            head="means" if by_means else "mlp",
        ),
        view=EvalView.of_size(views.size, views.mean, views.std),
        classes=saved.classes,
        seen=saved.seen,
        task=task,
        tasks=results.stream.tasks,
        source={
            "config_sha256": config.sha256,
            "model_sha256": saved.sha256,
            "state_sha256": results.state_sha256 if last else None,
            "stream_fingerprint": results.stream.fingerprint,
        },
        files=files,
        upright=results.stream.upright,
    )


def _check_place(ours: Path, out: Path) -> None:
    """Only what an export wrote is ever replaced, and no link in the run leads elsewhere.
    Raises UsageError."""
    for place in (ours, out):
        if place.is_symlink() and place in (out, out.parent):
            raise UsageError(f"--out {out}: {place} is a link; name the folder it leads to")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / description.FILE).is_file():
        raise UsageError(f"--out {out} is not empty and holds no export; name another folder")


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends, and only if it ends well."""
    path = path.resolve()
    hidden, former = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    make_folder(path.parent)
    with writing(path):
        for leftover in (hidden, former):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            hidden.mkdir()
            yield hidden
            if path.exists():
                path.rename(former)
            hidden.rename(path)
        finally:
            if former.exists() and not path.exists():
                former.rename(path)
            for leftover in (hidden, former):
                shutil.rmtree(leftover, ignore_errors=True)
