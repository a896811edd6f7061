"""The kinds of sources, one file each; a file here is all that a new kind needs.

A module KIND.py holds one subclass of `base.SourceKind`, and `prepare KIND:ARGUMENT` names it.
Kinds of other packages are entry points `kaizen_dist.sources`, or `module:Class:ARGUMENT`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.common.registry import Registry, trust
from kaizen_dist.stream.manifest_entries import LONGEST_NAME
from kaizen_dist.stream.sources.base import Source, SourceKind

SOURCES: Final[Registry[SourceKind]] = Registry(
    "source",
    "kaizen_dist.sources",
    SourceKind,  # type: ignore[type-abstract]
    __name__,
)


def open_source(spec: str, work: Path, progress: bool = True, skip_bad: bool = False) -> Source:
    """Opens the source a spec names; `work` takes what has to be decompressed.

    Raises UsageError for an unknown spec, DataError for a source that is missing, damaged,
    laid out otherwise, or (unless `skip_bad`, which leaves it out) has anything faulty, all of
    which is listed.
    """
    _, kind, argument = _find(spec)
    source = kind.open(spec, argument, work, progress)
    _check(source)
    if not source.faults:
        return source
    if not skip_bad:
        raise DataError(
            "\n  ".join((f"{one_line(spec)} has faults:", *source.faults, *source.told))
            + "\nmend them, or leave out what is faulty with --skip-bad"
        )
    left_out = tuple(f"left out: {line}" for line in source.faults)
    return replace(source, told=(*source.told, *left_out))


def _check(source: Source) -> None:
    """Raises DataError for what a stream cannot hold: names, and validation without a label."""
    if unlabelled := np.count_nonzero(source.labels[source.is_val] < 0):
        raise DataError(
            f"{one_line(source.spec)}: {unlabelled:,} validation images have no label; give them "
            "one, or leave them out"
        )
    for name in (*source.classes, *source.domains, *source.tasks):
        if not 0 < len(name) <= LONGEST_NAME or one_line(name) != name:
            raise DataError(
                f"{one_line(source.spec)}: {one_line(name)[:80]!r} cannot be the name of a class, "
                f"domain or task: rename it, without control characters, to at most "
                f"{LONGEST_NAME:,} letters"
            )


def has_tasks(spec: str) -> bool:
    """Whether the source says which image comes in which task. Raises as `open_source`."""
    _, kind, argument = _find(spec)
    return kind.has_tasks(argument)


def in_tars(spec: str) -> bool:
    """Whether a stream can read the images where they lie. Raises as `open_source`."""
    return _find(spec)[1].in_tars


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
