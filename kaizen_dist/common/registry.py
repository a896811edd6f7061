"""Parts that a configuration names: of this package, of installed ones, or `module:Class`.

A name is looked up among this package's own modules, then among the entry points of installed
packages; `module:Class` is imported from Python's path. Nothing else is imported.
"""

import difflib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Final, Generic, TypeVar

from kaizen_dist.common.errors import UsageError

T = TypeVar("T")

TRUST: Final = "KAIZEN_DIST_TRUST"
"""Environment variable: packages, separated by commas, that a stored run or export may name."""
_LISTED: Final = 20
"""Known names that are listed where none is near."""
_trusted: set[str] = set()


def trust(names: Iterable[Any]) -> None:
    """Allow the import of the modules in `module:Class` names that the user has written.

    A run or an export may come from somebody else: a module that only it names is not imported.
    """
    _trusted.update(n.partition(":")[0] for n in names if isinstance(n, str) and ":" in n)


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The parts of one kind: subclasses of `base`, looked up by name."""

    key: str
    """The key of a configuration that names such a part."""
    group: str
    """Entry points of other packages."""
    base: type[T]
    package: str | None = None
    """Package with a module a part; each holds one subclass and has the part's name."""

    def ours(self) -> list[str]:
        """Names of this package's parts, in alphabetical order."""
        if self.package is None:
            return []
        found = iter_modules(import_module(self.package).__path__)
        return sorted(module.name for module in found if module.name != "base")

    def find(self, name: str, others: Iterable[str] = ()) -> type[T]:
        """The class of this name; `others` are known names too, for the error message.

        Raises:
            UsageError: no such part (with the nearest names), or its code cannot be imported.
        """
        ours = self.ours()
        if name in ours:
            try:
                module = import_module(f"{self.package}.{name}")
            except ImportError as error:
                raise UsageError(
                    f"{self.key}: {name!r} needs a package that is not installed ({error}); "
                    f"pip install 'kaizen-dist[{name}]'"
                ) from error
            mine = [c for c in vars(module).values() if self._fits(c)]
            return next(c for c in mine if c.__module__ == module.__name__)
        installed = {entry.name: entry.value for entry in entry_points(group=self.group)}
        if name in installed:
            return self._import(name, installed[name])
        if ":" in name:
            self._check_trust(name)
            return self._import(name, name)
        known = [*ours, *installed, *others]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        if not near or len(known) <= _LISTED:
            hint += f"Known: {', '.join(known)}. "
        raise UsageError(
            f"{self.key}: {name!r} is unknown; {hint}Your own is named by module:Class "
            "(docs/extending.md)"
        )

    def _fits(self, found: object) -> bool:
        return isinstance(found, type) and issubclass(found, self.base) and found is not self.base

    def _import(self, name: str, place: str) -> type[T]:
        module, _, attribute = place.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:
            raise UsageError(
                f"{self.key}: {name!r} cannot be imported: {type(error).__name__}: {error}; "
                "install its package, or put its folder on PYTHONPATH"
            ) from error
        if not self._fits(found):
            raise UsageError(
                f"{self.key}: {name!r} is no subclass of {self.base.__module__}."
                f"{self.base.__qualname__}; see docs/extending.md"
            )
        part: type[T] = found
        return part

    def _check_trust(self, name: str) -> None:
        module = name.partition(":")[0]
        package = module.partition(".")[0]
        listed = os.environ.get(TRUST, "").split(",")
        if module not in _trusted and module not in sys.modules and package not in listed:
            raise UsageError(
                f"{self.key}: {name!r} is code that a stored run or model names, and it is not "
                f"imported unasked; if you trust it, set {TRUST}={package} or import it first"
            )
