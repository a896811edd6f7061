"""The weights that a run's backbone starts from (`model.init`): files, runs, exports, libraries.

Files come from anywhere, so names are matched and nothing is taken in silence: the backbone's names
are looked for under every prefix (`module.encoder_q.`, `backbone.network.`, `state_dict.model.`),
and what was loaded, missing and left over is reported.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torchvision import models

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.files import read_bytes
from kaizen_dist.common.run_layout import MODELS
from kaizen_dist.engine.base import digest
from kaizen_dist.learner.backbone import Backbone
from kaizen_dist.learner.learner import Learner
from kaizen_dist.learner.timm_backbone import pretrained_weights
from kaizen_dist.runs.results import StartedFrom
from kaizen_dist.runs.saved_models import SIZE_LIMIT

_TORCHVISION, _TIMM = "torchvision:", "timm:"
_EXPORTED = "model.safetensors"
_LEAST = 0.9
"""Least share of a backbone's numbers that has to be found: of another ResNet's many fit."""
_SHOWN = 8


class _WeightsFile(NamedTuple):
    """Tensors of a file."""

    source: str
    sha256: str | None
    """None: torchvision checked it."""
    tensors: dict[str, Tensor]


def start_from(source: str, learner: Learner) -> StartedFrom:
    """Give a new learner's backbone, and its momentum network's, the weights of `source`, which may
    end in `#PREFIX` where a file has several networks.

    Returns:
        What was loaded, missing and left over, as results.json has it.

    Raises:
        UsageError: the weights are of another architecture, or there is no such source.
        DataError: a file is missing or damaged, or holds values that are not finite.
    """
    place, _, wanted = (source, "", "") if Path(source).exists() else source.partition("#")
    found = _read(place)
    weights, started = match(found.source, found.tensors, learner.backbone, wanted)
    for backbone in (learner.backbone, *([learner.momentum.backbone] if learner.momentum else [])):
        backbone.network.load_state_dict(weights, strict=False)
    return started.model_copy(update={"sha256": found.sha256})


def match(
    source: str, tensors: Mapping[str, Tensor], backbone: Backbone, wanted: str = ""
) -> tuple[dict[str, Tensor], StartedFrom]:
    """The weights for a backbone's network among tensors whose names begin with `wanted`.

    Raises:
        UsageError: too few of its numbers are there, or several networks fit.
        DataError: values are not finite.
    """
    own = backbone.network.state_dict()
    prefix = _prefix(source, [n for n in tensors if n.startswith(wanted)], tensors, own)
    given = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    adapted = backbone.adapted(given)
    fits = {n: t for n, t in adapted.items() if n in own and t.shape == own[n].shape}
    # A name may have become another one, and a shape.
    used = {t.data_ptr() for t in fits.values()}
    # Counters of batches, which older files lack, play no part in what a network computes.
    missing = {n: t for n, t in own.items() if n not in fits and t.is_floating_point()}
    if bad := [name for name, t in fits.items() if not t.isfinite().all()]:
        raise DataError(f"{source}: {bad[0]} holds values that are not finite (NaN or infinity)")
    started = StartedFrom(
        source=source,
        loaded=len(fits),
        resized=[
            _with_shapes(n, own[n], given[n])
            for n in fits
            if n in given and given[n].shape != own[n].shape
        ],
        missing=[_with_shapes(n, t, given.get(n)) for n, t in missing.items()],
        left_over=[
            n
            for n, t in tensors.items()
            if t.data_ptr() not in used and not (n.startswith(prefix) and n[len(prefix) :] in fits)
        ],
    )
    lacking, whole = (sum(t.numel() for t in of.values()) for of in (missing, own))
    if lacking > (1 - _LEAST) * whole:
        raise UsageError(
            f"model.init: {source} lacks {lacking / whole:.0%} of this backbone: "
            f"{_listed(started.missing)}. What it has: {_listed(list(tensors))}. Set "
            "model.backbone, model.stem and views.size as they were for these weights"
        )
    return {n: t.to(own[n].dtype) for n, t in fits.items()}, started


def report(started: StartedFrom) -> Iterator[str]:
    """Lines for the terminal."""
    resized = f", {_listed(started.resized)} resized" if started.resized else ""
    yield f"the backbone starts from {started.source}: {started.loaded} tensors{resized}"
    if started.missing:
        yield f"WARNING: not there, and random: {_listed(started.missing)}"
    if started.left_over:
        yield f"left over: {_listed(started.left_over)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _with_shapes(name: str, own: Tensor, given: Tensor | None) -> str:
    return name if given is None else f"{name} {[*given.shape]} for {[*own.shape]}"


def _prefix(
    source: str,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> str:
    """What stands before the network's names in a file: where most of its numbers are found."""
    sizes: dict[str, int] = {}
    for name in names:
        tensor, parts = tensors[name], name.split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            if end in own and own[end].shape == tensor.shape:
                prefix = name.removesuffix(end)
                sizes[prefix] = sizes.get(prefix, 0) + tensor.numel()
    most = max(sizes.values(), default=0)
    best = [prefix for prefix, size in sizes.items() if size == most]
    if len(best) > 1:
        raise UsageError(
            f"model.init: {source} has several networks that fit, {', '.join(best)}; name one, "
            f"e.g. model.init={source}#{best[0]}"
        )
    return best[0] if best else ""


def _read(source: str) -> _WeightsFile:
    if source.startswith(_TORCHVISION):
        return _of_torchvision(source)
    if source.startswith(_TIMM):
        return _of_timm(source)
    path = Path(source)
    if path.is_dir():
        path = _within(path)
    try:
        raw = read_bytes(path, SIZE_LIMIT)
    except (OSError, ValueError) as error:  # of a path that no file can have
        reason = getattr(error, "strerror", error)
        raise DataError(
            f"model.init: {path} cannot be read: {reason}; give a file of weights, the folder of a "
            f"run or an export, {_TORCHVISION}NAME or {_TIMM}NAME"
        ) from None
    return _WeightsFile(str(path), hashlib.sha256(raw).hexdigest(), dict(_tensors(path, raw)))


def _within(folder: Path) -> Path:
    """The weights in a run's or an export's folder."""
    if (folder / _EXPORTED).exists():
        return folder / _EXPORTED
    if not (saved := sorted((folder / MODELS).glob("task-*.safetensors"))):
        raise UsageError(
            f"model.init: {folder} holds no model of a finished task, and no {_EXPORTED}"
        )
    return saved[-1]


def _tensors(path: Path, raw: bytes) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file by dotted names. No code in it is run."""
    if path.suffix == ".safetensors":
        try:
            yield from load(raw).items()
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"model.init: {path}: no whole safetensors file ({error})") from None
        return
    try:
        with warnings.catch_warnings():  # about the protocol of some files
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"model.init: {path} cannot be read as weights ({reason}); save the state_dict alone, "
            "with torch.save or safetensors"
        ) from None
    yield from _flat(content)


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}.")


def _of_torchvision(source: str) -> _WeightsFile:
    name = source.removeprefix(_TORCHVISION)
    try:
        weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError, KeyError) as error:
        raise UsageError(
            f"model.init: {source}: torchvision has no such weights ({error}); names are those of "
            "its models, or e.g. ResNet50_Weights.IMAGENET1K_V2"
        ) from None
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"model.init: {weights.url} cannot be fetched ({error}); fetch it on a machine with a "
            "network, and give the file"
        ) from None
    return _WeightsFile(f"{_TORCHVISION}{weights}", None, dict(tensors))


def _of_timm(source: str) -> _WeightsFile:
    try:
        tensors = pretrained_weights(source.removeprefix(_TIMM))
    except UsageError:
        raise
    except Exception as error:  # of several libraries that fetch
        raise DataError(
            f"model.init: {source} cannot be fetched ({error}); fetch it on a machine with a "
            "network, and give the file"
        ) from None
    return _WeightsFile(source, digest(tensors.items()), tensors)
