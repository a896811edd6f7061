"""Kaizen at cluster scale: continual self-supervised learning with continual fine-tuning.

    import kaizen_dist as kd

    kd.prepare("digits", "streams/digits", tasks=5)
    results = kd.train("digits", stream="streams/digits", out="runs/a")
    model = kd.load_model(kd.export("runs/a"))
    features = kd.embed(model, ["photo.jpg"])

The paper is arXiv 2303.17235; `docs/architecture.md` is the map of this package, `docs/python.md`
has more of this interface. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaizen_dist.common.version import VERSION

if TYPE_CHECKING:
    from kaizen_dist.config.schema import Config
    from kaizen_dist.interface import embed, evaluate, export, load_config, load_model, train
    from kaizen_dist.learner.backbone import Backbone
    from kaizen_dist.learner.methods.base import Method
    from kaizen_dist.stream.add_labels import label
    from kaizen_dist.stream.manifest import Stream
    from kaizen_dist.stream.prepare import extend, prepare
    from kaizen_dist.stream.sources.base import Source, SourceKind
    from kaizen_dist.training.loggers.base import Logger

__version__ = VERSION
__all__ = [
    "Backbone",
    "Config",
    "Logger",
    "Method",
    "Source",
    "SourceKind",
    "Stream",
    "embed",
    "evaluate",
    "export",
    "extend",
    "label",
    "load_config",
    "load_model",
    "prepare",
    "train",
]
_MODULES = {
    "Backbone": "learner.backbone",
    "Config": "config.schema",
    "Logger": "training.loggers.base",
    "Method": "learner.methods.base",
    "Source": "stream.sources.base",
    "SourceKind": "stream.sources.base",
    "Stream": "stream.manifest",
    "extend": "stream.prepare",
    "label": "stream.add_labels",
    "prepare": "stream.prepare",
}
"""Where the names lie that are not in `interface`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES.get(name, 'interface')}")
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
