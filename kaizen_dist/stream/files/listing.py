"""What the user is told of a source: what is wrong in it, and what of it is not used."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files.file_tree import FileTree, storable
from kaizen_dist.stream.files.name_list import NameList
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.numbers import Numbers

CLOSED = "folders that cannot be read"
_SHOWN = 6
_UNREAD = re.compile(
    r"heic|heif|hif|avif|jxl|jp2|j2k|jpx|svg|psd|exr|hdr|ico|tga|dds"
    r"|raw|dng|cr2|cr3|nef|arw|orf|raf|rw2|pef"
)
"""File name endings of formats of images that are not read."""


class Faults:
    """What is wrong in a source: by kind, counted, with the first examples."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Notes a fault; `kind` is a noun in plural."""
        self._counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _SHOWN:
            examples.append(example)

    def lines(self) -> tuple[str, ...]:
        """A line a kind."""
        return tuple(
            f"{kind} ({count:,}): {shown(self._examples[kind], count)}"
            for kind, count in self._counts.items()
        )


def fit_to_validate(
    classes: Sequence[str],
    labels: Numbers,
    is_val: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    name_of: Callable[[int], str],
    faults: Faults,
) -> NDArray[np.bool_]:
    """[n] which of a source's `kept` images are fit for use: not those for validation that have no
    label, or a class that no training image has; these are noted as faults."""
    unlabelled = kept & is_val & (labels == UNLABELLED)
    for n in np.flatnonzero(unlabelled).tolist():
        faults.add("validation images without a label", name_of(n))
    untaught = np.setdiff1d(labels[kept & is_val], labels[kept & ~is_val])
    untaught = untaught[untaught != UNLABELLED]
    for label in untaught.tolist():
        first = int(np.flatnonzero(kept & (labels == label))[0])
        faults.add(
            "classes that only validation images have", f"{classes[label]} ({name_of(first)})"
        )
    return kept & ~unlabelled & ~(is_val & np.isin(labels, untaught))


def shown(examples: Sequence[str], count: int) -> str:
    """The first of `count` names, on one line."""
    listed = ", ".join(one_line(storable(example)) for example in examples[:_SHOWN])
    return listed + (f" and {count - _SHOWN:,} more" if count > _SHOWN else "")


def counted(classes: int, labels: Numbers, is_val: NDArray[np.bool_]) -> str:
    """A line on the images with these labels [n] (-1: none), [n] of which are for validation."""
    unlabelled, val = np.count_nonzero(labels == UNLABELLED), np.count_nonzero(is_val)
    return (
        f"{plural(classes, 'class', 'classes')}, {plural(len(labels), 'image')}, {unlabelled:,} of "
        f"them without a label, {val:,} for validation"
    )


def unread(names: Iterable[str]) -> list[str]:
    """A line on the images, among files that are not used, whose format is not read."""
    endings = (name.rpartition(".")[2].lower() for name in names)
    if not (counts := Counter(ending for ending in endings if _UNREAD.fullmatch(ending))):
        return []
    listed = ", ".join(f"{count:,} {ending}" for ending, count in counts.most_common())
    return [f"images in formats that are not read: {listed}; convert them, e.g. to jpg"]


def unused(
    tree: FileTree,
    chosen: Numbers,
    groups: Container[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> list[str]:
    """A line on each part that is left out (with the reason), and on all else of a tree that is
    not used or cannot be read. `chosen`: the numbers of the images; `groups`: the folders at the
    top that they lie in, if it is these that matter."""
    used = np.zeros(len(tree.names), bool)
    used[chosen] = True
    beside: Counter[str] = Counter()
    files = NameList()
    for number in map(int, np.flatnonzero(~used)):
        name = tree.names[number]
        top, _, below = name.partition("/")
        if groups and below and top not in groups:
            beside[top] += 1
        else:
            files.append(name)
    lines = [
        f"{part}/ {why} ({plural(beside.pop(part, 0), 'file')})"
        for part, why in (left_out or {}).items()
    ]
    items = [f"{name} ({why})" for name, why in tree.closed.items()]
    items += [f"{top}/ ({plural(count, 'file')})" for top, count in beside.items()]
    items += [f"{name} ({tree.odd[name]})" for name in files if name in tree.odd]
    items += _by_ending(NameList(name for name in files if name not in tree.odd))
    items += tree.passed_over
    # What has a reason behind it comes first: it may be a mistake.
    items.sort(key=lambda item: (not item.endswith(")"), item))
    if items:
        items = [f"ignored: {shown(items, len(items))}"]
    return [*lines, *unread(files), *_unreadable(tree, chosen), *items]


def _by_ending(names: Sequence[str]) -> list[str]:
    """The names, or where they are many, how many have which ending."""
    if len(names) <= _SHOWN:
        return list(names)
    endings = Counter(posixpath.splitext(name)[1] for name in names)
    return [
        plural(count, f"{ending} file" if ending else "file")
        + ("" if ending else " without ending")
        for ending, count in endings.most_common()
    ]


def nothing(tree: FileTree, what: str, faults: Faults) -> DataError:
    """The error for a source without images."""
    return DataError("\n  ".join([f"{tree.path}: {what}", *faults.lines(), *unread(tree.names)]))


def _unreadable(tree: FileTree, chosen: Numbers) -> tuple[str, ...]:
    """A line on the images that will not decode."""
    faults = Faults()
    if not tree.odd:
        return ()
    for name in sorted(name for n in chosen if (name := tree.names[n]) in tree.odd):
        faults.add("images that cannot be read", f"{name} ({tree.odd[name]})")
    return faults.lines()
