"""Engines: how a learner is stepped and saved by all ranks together."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaizen_dist.engine.base import Engine

_ENGINES = {
    "ddp": ("torch_engine", "DDPEngine"),
    "fsdp": ("torch_engine", "FSDPEngine"),
    "deepspeed": ("deepspeed.engine", "ZeROEngine"),
}


def engine_class(name: str) -> "type[Engine]":
    """The engine that `parallel.engine` names, imported when it is used."""
    module, engine = _ENGINES[name]
    found: type[Engine] = getattr(import_module(f"kaizen_dist.engine.{module}"), engine)
    return found
