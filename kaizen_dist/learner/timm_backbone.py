"""Backbones of the timm library: `model.backbone: timm/NAME`, without a head.

Any of its models serves that turns square images into one row of features each. Whether it does,
and whether its answers depend on nothing but weights and images, is seen before training, on
torch's `meta` device, where nothing is computed.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from kaizen_dist.common.errors import UsageError
from kaizen_dist.learner.backbone import TIMM, Architecture, Backbone


class TimmBackbone(Backbone):
    """The model that `config.backbone` names after `timm/`, with random weights.

    Raises:
        UsageError: timm is not installed, has no such model, or the model does not fit.
    """

    def __init__(self, config: Architecture, image_size: int) -> None:
        if config.stem != "auto":
            raise UsageError(
                f"model.stem: {config.stem!r} is for torchvision's residual networks, and "
                f"model.backbone={config.backbone} has the stem that timm gives it; use stem: auto"
            )
        name = config.backbone.removeprefix(TIMM)
        fit = _fit(name, image_size)
        network, arguments = _network(name, image_size)
        super().__init__(network, fit.features, fit.layout)
        self.call = ", ".join([repr(name), *(f"{key}={value}" for key, value in arguments.items())])
        """The arguments with which `timm.create_model` makes this network."""

    @override
    def blocks(self) -> list[nn.Module]:
        """The layers that timm numbers for its layer-wise learning rates; of a model where it
        numbers none, the whole."""
        names = list(dict.fromkeys(self._block_names()))
        inner = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
        return [self.network.get_submodule(name) for name in inner] or [self.network]

    def _block_names(self) -> Iterator[str]:
        """Modules that a pattern with a number in it matches, parameter by parameter. What is given
        a place of its own is no layer: it goes with a neighbour."""
        patterns = [
            pattern
            for given in _patterns(self.network)
            for pattern, place in ([(given, None)] if isinstance(given, str) else given)
            if place is None
        ]
        modules = dict(self.network.named_modules())
        for name, _ in self.network.named_parameters():
            found = (re.match(pattern, name) for pattern in patterns)
            match = next(filter(None, found), None)
            if match and match.groups() and (block := match[0].rstrip(".")) in modules:
                yield block

    @override
    def layers(self) -> dict[str, int]:
        """As timm numbers them for its own layer-wise learning rates; what it counts to the head,
        such as a last norm, goes with the last block."""
        matcher = getattr(self.network, "group_matcher", None)
        if matcher is None:
            return super().layers()
        group = import_module("timm.models").group_parameters
        numbers: dict[str, int] = group(self.network, matcher(coarse=False), reverse=True)
        in_blocks = {id(p) for block in self.blocks() for p in block.parameters()}
        last = max(numbers[n] for n, p in self.network.named_parameters() if id(p) in in_blocks)
        return {f"network.{name}": min(number, last) for name, number in numbers.items()}

    @override
    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also weights by the names of those who published them. What fits by name stays."""
        convert = getattr(
            import_module(type(self.network).__module__), "checkpoint_filter_fn", None
        )
        own, found = self.network.state_dict(), dict(weights)
        fits = {n for n, t in own.items() if n in found and found[n].shape == t.shape}
        if convert is None or fits == own.keys():
            return found
        try:
            made = convert(dict(weights), self.network)
        except Exception:  # of weights of another network
            return found
        return found | {
            n: t for n, t in made.items() if n in own and n not in fits and t.shape == own[n].shape
        }

    @override
    def patch_projection(self) -> nn.Module | None:
        found = getattr(getattr(self.network, "patch_embed", None), "proj", None)
        return found if isinstance(found, nn.Module) else None


def _patterns(network: nn.Module) -> list[Any]:
    """timm's patterns of parameters by layer: each one, or several with places."""
    matcher: Callable[..., Any] | None = getattr(network, "group_matcher", None)
    groups = matcher(coarse=False) if matcher else {}
    return [given for given in groups.values() if given] if isinstance(groups, dict) else []


class _Fit(NamedTuple):
    """What a model makes of images of a size."""

    features: int
    layout: torch.memory_format


@cache
def _fit(name: str, image_size: int) -> _Fit:
    """Raises UsageError for a model that cannot be a backbone."""
    key = f"model.backbone: {TIMM}{name}"
    with torch.device("meta"):
        network, _ = _network(name, image_size)
        images = torch.empty(2, 3, image_size, image_size)
    _check_patch(network, key, image_size)
    own = getattr(network, "default_cfg", {}).get("input_size")
    try:
        with torch.no_grad(), _Randomness() as random:
            answers = [network.train()(images), network.eval()(images)]
            inner = getattr(network, "forward_features", network)(images)
    except Exception as error:
        raise UsageError(
            f"{key} does not take images of views.size={image_size} "
            f"({type(error).__name__}: {error}); set views.size to a size that it takes"
            + (f", such as its own, {own[-1]}" if own else "")
        ) from None
    shapes = [tuple(a.shape) if isinstance(a, Tensor) else type(a).__name__ for a in answers]
    features = answers[0].shape[-1] if isinstance(answers[0], Tensor) else 0
    if shapes != [(2, features)] * 2:
        raise UsageError(
            f"{key} makes {shapes[0]} of two images when it trains, and {shapes[1]} when it does "
            "not, where a backbone makes (2, features); take a model with pooled features"
        )
    if random.used:
        raise UsageError(
            f"{key} draws random numbers as it trains ({', '.join(sorted(random.used))}), which "
            "a run could not repeat at another world size; take another model"
        )
    if odd := [n for n, m in network.named_modules() if _keeps_own_statistics(m)]:
        raise UsageError(
            f"{key}: {odd[0]} takes batch statistics that are not BatchNorm's, and these would be "
            "those of a rank instead of the global batch; take another model"
        )
    maps = isinstance(inner, Tensor) and inner.ndim == 4
    return _Fit(features, torch.channels_last if maps else torch.contiguous_format)


def _check_patch(network: nn.Module, key: str, image_size: int) -> None:
    """timm leaves out, in silence, what does not fill a patch."""
    size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    side = size[0] if isinstance(size, tuple) else size
    if isinstance(side, int) and side and image_size % side:
        raise UsageError(
            f"{key} cuts patches of {side} px, which do not fill views.size={image_size}; "
            f"set views.size to a multiple, e.g. {max(1, round(image_size / side)) * side}"
        )


def _keeps_own_statistics(module: nn.Module) -> bool:
    own = dict(module.named_buffers(recurse=False))
    return not isinstance(module, _BatchNorm) and not own.keys().isdisjoint(
        ("running_mean", "running_var")
    )


class _Randomness(TorchDispatchMode):
    """Notes the operations that draw from a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.used.add(str(func))
        return func(*args, **(kwargs or {}))


def _network(name: str, image_size: int) -> tuple[nn.Module, dict[str, int]]:
    """timm's model of this name for images of this size, with dropout and its kin switched off; and
    the arguments that it was made with."""
    timm = _library()
    _check_name(timm, name)
    try:
        network, arguments = _create(timm, name, image_size)
    except Exception as error:
        raise UsageError(
            f"model.backbone: {TIMM}{name} cannot be made for views.size={image_size} "
            f"({type(error).__name__}: {error}); set another size, or take another model"
        ) from None
    for module in network.modules():
        dropping = "drop" in type(module).__name__.lower()
        for attribute, value in list(vars(module).items()):
            rate = "drop" in attribute or (dropping and attribute in ("p", "prob"))
            if rate and isinstance(value, float):
                setattr(module, attribute, 0.0)
    return network, arguments


def _create(timm: Any, name: str, image_size: int) -> tuple[nn.Module, dict[str, int]]:
    arguments = {"num_classes": 0, "img_size": image_size}
    try:
        return timm.create_model(name, pretrained=False, **arguments), arguments
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    del arguments["img_size"]  # of a model that is not made for one size
    return timm.create_model(name, pretrained=False, **arguments), arguments


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """The weights that timm has for a model, with those of its head, by timm's names.

    Raises:
        UsageError: timm is not installed, has no such model, or has no weights for it.
        Exception: of the library that fetches them.
    """
    timm = _library("model.init: timm:...")
    _check_name(timm, name, "model.init")
    about = timm.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise UsageError(
            f"model.init: timm has no weights for {name!r}; "
            "python -c 'import timm; print(*timm.list_pretrained())' lists those it has"
        )
    network: nn.Module = timm.create_model(name, pretrained=True)
    return dict(network.state_dict())


def _library(key: str = f"model.backbone: {TIMM}...") -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise UsageError(f"{key} needs timm ({error}); pip install 'kaizen-dist[timm]'") from None


def _check_name(timm: Any, name: str, key: str = "model.backbone") -> None:
    """Only names of its registry: others would fetch code or weights from elsewhere."""
    model, _, tag = name.partition(".")
    weights = timm.list_models(f"{model}.*", pretrained=True) if timm.is_model(model) else []
    if timm.is_model(model) and (not tag or name in weights):
        return
    near = difflib.get_close_matches(name, [*timm.list_models(), *weights], n=3, cutoff=0.6)
    near = weights[:3] if weights else near
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"{key}: timm has no model {name!r}; {hint}"
        "python -c 'import timm; print(*timm.list_models())' lists them"
    )
