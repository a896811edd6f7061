"""The model of every finished task, kept beside its run so that it can be exported later.

    RUN/models/task-00.safetensors     backbone.*, classifier.* of the student after task 0, and the
                                       nearest class mean's class_means.* where the run has it

`write_model` stores the learner's state when a task ends, `read_model` returns it for an export.
The header names the classes of the outputs, so an export needs no stream. The same state gives the
same bytes: a run that is killed here and resumed writes the same file again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_write, make_folder, parse_json, read_bytes
from kaizen_dist.common.run_layout import MODELS
from kaizen_dist.stream.manifest import Stream

FORMAT_VERSION = 1
PARTS = ("backbone.", "classifier.", "class_means.weight", "class_means.bias")
"""Prefixes of the tensors that an export needs; projectors, teacher and queue are left out."""

SIZE_LIMIT: Final = 8 << 30
"""Largest model file that is read, in bytes: a ViT-H has 2.5e9."""

# One key only: safetensors writes several in an order that changes from process to process.
_HEADER = "kaizen_dist"


@dataclass(frozen=True)
class SavedModel:
    """A file of `RUN/models`, read."""

    path: Path
    sha256: str
    classes: tuple[str, ...]
    """Names in the order of the classifier's outputs: all classes known by then."""
    seen: tuple[int, ...]
    """Indices of the classes of this task and earlier ones, ascending."""
    state: dict[str, Tensor]
    """By the learner's names, on the CPU."""


def model_path(run: Path, task: int) -> Path:
    """File of a task's model; tasks count from 0."""
    return run / MODELS / f"task-{task:02d}.safetensors"


def write_model(
    run: Path, task: int, state: Mapping[str, Tensor], stream: Stream, classes: int
) -> Path:
    """Store the student after a task; `state` is the learner's full state_dict, `classes` the
    number of its classifier's outputs.

    Floating-point tensors are written as float32, counters as they are. Raises WriteError.
    """
    kept = {name: _plain(tensor) for name, tensor in state.items() if name.startswith(PARTS)}
    header = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "classes": stream.classes[:classes],
        "seen": stream.seen(task),
    }
    path = model_path(run, task)
    make_folder(path.parent)
    atomic_write(path, save(kept, metadata={_HEADER: json.dumps(header)}))
    return path


def read_model(run: Path, task: int) -> SavedModel:
    """Read back what `write_model` wrote.

    Raises:
        DataError: the file is missing, damaged or of another format version.
    """
    path = model_path(run, task)
    try:
        data = read_bytes(path, SIZE_LIMIT)
        header = _header(data)
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version {version}, this program reads {FORMAT_VERSION}; "
                "export with the version that trained the run"
            )
        classes, seen = tuple(header["classes"]), tuple(header["seen"])
        if not all(isinstance(name, str) for name in classes) or not set(seen) <= set(
            range(len(classes))
        ):
            raise ValueError("its classes are not names, or those it has seen are not among them")
        return SavedModel(path, hashlib.sha256(data).hexdigest(), classes, seen, load(data))
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing, though its task is finished; restore it from a copy of the run"
        ) from None
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not a whole model file ({error}); restore it from a copy of the run"
        ) from None


def _header(data: bytes) -> Any:
    """Our entry in the header of a safetensors file (its length, JSON, weights)."""
    length = int.from_bytes(data[:8], "little")
    return parse_json(parse_json(data[8 : 8 + length])["__metadata__"][_HEADER])


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).contiguous()
