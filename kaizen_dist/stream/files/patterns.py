"""Names of many files by one pattern: {000..012}, {a,b}, and the globs *, ?, [ab] and **."""

import glob
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.sources.base import absolute

_MOST_FILES = 100_000


def absolute_pattern(pattern: str) -> str:
    """The pattern with its path made absolute. Raises UsageError for a URL."""
    if re.match(r"(pipe:|\w+://)", pattern):
        raise UsageError(f"{pattern}: only files on a disk are read; download them first")
    return absolute(pattern)


def fixed_folder(pattern: str) -> Path:
    """The folder that all names are relative to: it must not depend on which files there are."""
    return Path(os.path.dirname(re.split(r"[{*?\[]", pattern)[0])).absolute()  # noqa: PTH120


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern names, each once; those of globs exist.

    Raises DataError for none, UsageError for a pattern that is wrong.
    """
    found: list[str] = []
    for name in _expanded(pattern):
        found += sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207
    if not found:
        raise DataError(f"there is no file that matches {pattern}; check the pattern")
    return [Path(name) for name in dict.fromkeys(found)]


def is_gone(pattern: str) -> bool:
    """Whether none of the files is there."""
    try:
        return not any(path.exists() for path in matching_files(pattern))
    except DataError:
        return True


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern with {a..b} and {x,y} written out. Raises UsageError for too many."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[p] if n % 2 == 0 else _choices(p, pattern) for n, p in enumerate(pieces)]
    if math.prod(map(len, choices)) > _MOST_FILES:
        raise UsageError(f"{pattern}: names more than {_MOST_FILES:,} files")
    return map("".join, itertools.product(*choices))


def _choices(inside: str, pattern: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    numbers = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise UsageError(f"{pattern}: {{{inside}}} is neither {{000..012}} nor {{a,b}}")
    first, last = int(numbers[1]), int(numbers[2])
    if last - first >= _MOST_FILES:
        raise UsageError(f"{pattern}: names more than {_MOST_FILES:,} files")
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
