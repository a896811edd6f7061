"""The self-supervised methods, one file each; a file here is all that a new method needs.

A module NAME.py holds one subclass of `base.Method`, and `method: NAME` in a configuration
asks for it. Nothing else in the package knows the names.
"""

import difflib
import importlib
import pkgutil

from kaizen_dist.common.errors import UsageError
from kaizen_dist.learner.methods.base import Method


def method_names() -> list[str]:
    """All methods there are, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def method_class(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        UsageError: there is none; it lists those there are, with the nearest one.
    """
    known = method_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"method: {name!r} is unknown; {hint}Known: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type)
        and issubclass(item, Method)
        and item.__module__ == module.__name__
    )
    return found
