"""The kinds of sources, one file each; a file here is all that a new kind needs.

A module KIND.py holds one subclass of `base.SourceKind`, and `prepare KIND:ARGUMENT` names it.
Kinds of other packages are entry points `kaizen_dist.sources`, or `module:Class:ARGUMENT`.
"""

import re
from pathlib import Path
from typing import Final

from kaizen_dist.common.errors import UsageError
from kaizen_dist.common.registry import Registry, trust
from kaizen_dist.stream.sources.base import Source, SourceKind

SOURCES: Final[Registry[SourceKind]] = Registry(
    "source",
    "kaizen_dist.sources",
    SourceKind,  # type: ignore[type-abstract]
    __name__,
)


def open_source(spec: str, work: Path, progress: bool = True) -> Source:
    """Opens the source a spec names; `work` takes what has to be decompressed.

    Raises UsageError for an unknown spec, DataError for a source that is missing, damaged,
    laid out otherwise, or has a class without images.
    """
    _, kind, argument = _find(spec)
    return kind.open(spec, argument, work, progress)


def source_stamp(spec: str, source: Source | None = None) -> str | None:
    """A digest in hex by which a later change of the source is noticed, see `SourceKind.stamp`.

    `source` is the same, if it is open. Raises DataError as `open_source`.
    """
    _, kind, argument = _find(spec)
    return kind.stamp(spec, argument, source)


def resolve_spec(spec: str) -> str:
    """The spec with its path made absolute, so that one source has one name.

    Raises UsageError for an unknown spec.
    """
    name, kind, argument = _find(spec)
    return f"{name}:{kind.resolve(argument)}" if argument else name


def _find(spec: str) -> tuple[str, SourceKind, str]:
    """Name of the kind, the kind, and its argument."""
    name, _, argument = spec.partition(":")
    if name not in SOURCES.ours() and (named := re.match(r"[\w.]+:[A-Z]\w*(?=:|$)", spec)):
        name, argument = named[0], spec[named.end() + 1 :]
        trust([name])  # the user asks for it
    kind = SOURCES.find(name)()
    if not re.fullmatch(kind.pattern, argument, re.DOTALL):
        raise UsageError(f"{spec!r} is no source; give {kind.usage}")
    return name, kind, argument
