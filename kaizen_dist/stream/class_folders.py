"""Class folders as a source: which folder is which part, and which files are its images.

    folder:PATH     train/CLASS/* with val/CLASS/* or test/CLASS/*; or CLASS/* alone
    domains:PATH    DOMAIN/CLASS/*

The parts may be spelled in any case; `val`, `valid` and `validation` mean the same, and beside one
of them `test` is left out. An image is a file with an image's extension, in any case.
Other files, what folders.py passes over, and files beside the class folders are ignored, counted
and listed for the user; images in folders below a class folder are an error, because they would be
missed. A file of an image's name that cannot be read (a broken link, a pipe) counts as an image
that does not decode.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from kaizen_dist.common.console import one_line
from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.file_tree import FileTree, storable
from kaizen_dist.stream.images import is_image_name
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source

_TRAIN, _VAL, _TEST = "training", "validation", "test"
_ROLES = {"train": _TRAIN, "val": _VAL, "valid": _VAL, "validation": _VAL, "test": _TEST}
_SHOWN = 6


class _Found(NamedTuple):
    """An image in a tree: its number there, and its path in three parts."""

    number: int
    group: str
    class_name: str
    name: str


def read_class_folders(spec: str, tree: FileTree) -> Source:
    """`train/CLASS/*` with `val/CLASS/*` or `test/CLASS/*`, or `CLASS/*`.

    Raises DataError for another layout, and for a class without (training) images.
    """
    parts = _parts(tree)
    train, val, test = (parts.get(role) for role in (_TRAIN, _VAL, _TEST))
    if train is None:
        return _source(spec, tree, _find(tree, 0), {"": False}, {})
    left_out = {test: f"is left out: {val}/ is the validation part"} if val and test else {}
    val = val or test
    is_val = {train: False} | ({val: True} if val else {})
    found = _find(tree, 1, is_val)
    source = _source(spec, tree, found, is_val, left_out)
    taught = set(source.labels[~source.is_val])
    for label in np.unique(source.labels[source.is_val]):
        if label not in taught:
            name = source.classes[label]
            raise DataError(f"{tree.path}: {val}/{name} has no counterpart {train}/{name}")
    return source


def read_domain_folders(spec: str, tree: FileTree) -> Source:
    """`DOMAIN/CLASS/*`. Raises DataError as `read_class_folders`."""
    return _source(spec, tree, _find(tree, 1), None, {})


def _parts(tree: FileTree) -> dict[str, str]:
    """The folder of each role that has one: those that hold folders.

    Raises DataError for two with the same role, and for one that cannot be opened.
    """
    parts: dict[str, str] = {}
    above = {folder.split("/")[0] for folder in tree.folders if folder.count("/") == 1}
    for name in sorted(above | {name for name in tree.closed if "/" not in name}):
        role = _ROLES.get(name.lower())
        if role is None:
            continue
        if name in tree.closed:
            raise DataError(f"{tree.path}: {storable(name)} {tree.closed[name]}")
        if role in parts:
            raise DataError(
                f"{tree.path}: holds both {parts[role]}/ and {name}/; leave one of them as the "
                f"{role} part, and rename the other"
            )
        parts[role] = name
    return parts


def _find(tree: FileTree, depth: int, groups: Collection[str] | None = None) -> list[_Found]:
    """All images at `CLASS/NAME` (depth 0), or at `GROUP/CLASS/NAME` (depth 1) of these groups
    (None: all).

    Raises DataError for a class folder without images, or that cannot be opened, and for images
    below a class folder.
    """

    def is_used(parts: list[str]) -> bool:
        return depth == 0 or groups is None or parts[0] in groups

    found, filled = [], set()
    for number, name in enumerate(tree.names):
        *above, file = parts = name.split("/")
        if not is_image_name(file) or not is_used(parts):
            continue
        if len(above) > depth + 1:
            raise DataError(
                f"{tree.path}: {storable(name)} lies below a class folder; images are read from "
                "CLASS/* only: move them up, or give the folder that holds the class folders"
            )
        if len(above) == depth + 1:
            found.append(_Found(number, above[0] if depth else "", above[-1], file))
            filled.add("/".join(above))
    for folder in sorted(tree.folders | tree.closed.keys()):
        parts = folder.split("/")
        if len(parts) > depth + 1 or not is_used(parts):
            continue
        if folder in tree.closed:
            raise DataError(f"{tree.path}: {storable(folder)} {tree.closed[folder]}")
        if len(parts) == depth + 1 and folder not in filled:
            raise DataError(
                f"{tree.path}: the class folder {storable(folder)} has no images; "
                "remove it or fill it"
            )
    if not found:
        raise DataError(f"{tree.path}: no class folders with images in it")
    return found


def _source(
    spec: str,
    tree: FileTree,
    found: list[_Found],
    is_val_part: dict[str, bool] | None,
    left_out: dict[str, str],
) -> Source:
    """Numbers the images; the groups are parts, or domains where `is_val_part` is None."""
    domains = sorted({image.group for image in found}) if is_val_part is None else []
    is_val = is_val_part or dict.fromkeys(domains, False)
    spelled = _spellings((is_val[image.group], image.class_name) for image in found)
    classes = sorted(set(spelled.values()))
    found = sorted(
        found, key=lambda f: (is_val[f.group], spelled[f.class_name], f.group, f.class_name, f.name)
    )
    label_of = {name: label for label, name in enumerate(classes)}
    domain_of = {name: number for number, name in enumerate(domains)}
    chosen = np.array([image.number for image in found])
    aside = len(tree.names) - len(found) + len(tree.passed_over) + len(tree.closed)
    return Source(
        spec=spec,
        classes=[storable(name) for name in classes],
        domains=[storable(name) for name in domains],
        labels=np.array([label_of[spelled[image.class_name]] for image in found]),
        domains_of=np.array([domain_of.get(image.group, NO_DOMAIN) for image in found]),
        is_val=np.array([is_val[image.group] for image in found]),
        images=tree.images(chosen),
        ignored=aside,
        sizes=tree.sizes[chosen],
        told=(*_used(found, is_val_part, len(classes)), *_ignored(tree, found, left_out)),
    )


def _spellings(names: Iterable[tuple[bool, str]]) -> dict[str, str]:
    """One spelling of each class: an accent may be part of its letter or follow it, depending on
    the system that wrote the folder. That of the training part counts."""
    by_letters: dict[str, str] = {}
    spelled = {}
    for _, name in sorted(set(names)):
        spelled[name] = by_letters.setdefault(unicodedata.normalize("NFC", name), name)
    return spelled


# ---- what the user is told --------------------------------------------------------------


def _used(found: list[_Found], is_val: dict[str, bool] | None, classes: int) -> list[str]:
    """A line on each part: what it was taken for."""
    sizes = Counter(image.group for image in found)
    if is_val is None:
        domains = _many(len(sizes), "domain")
        return [f"{domains}, {_many(classes, 'class')}, {_many(len(found), 'image')}"]
    if "" in is_val:
        return [f"{_many(classes, 'class')}, {_many(len(found), 'image')}, no validation part"]
    return [
        f"{part}/ is the {_VAL if of_val else _TRAIN} part: {_many(sizes[part], 'image')}"
        for part, of_val in is_val.items()
    ]


def _ignored(tree: FileTree, found: list[_Found], left_out: dict[str, str]) -> list[str]:
    """A line on each part that is left out, and one on all else that is."""
    groups = {image.group for image in found} - {""}
    used = {image.number for image in found}
    beside: Counter[str] = Counter()
    items = [f"{name} ({why})" for name, why in tree.closed.items()]
    items += tree.passed_over
    files = []
    for number, name in enumerate(tree.names):
        top, _, below = name.partition("/")
        if number in used:
            continue
        if groups and below and top not in groups:
            beside[top] += 1
        else:
            files.append(f"{name} ({tree.odd[name]})" if name in tree.odd else name)
    lines = [
        f"{part}/ {why} ({_many(beside.pop(part, 0), 'file')})" for part, why in left_out.items()
    ]
    items += [f"{top}/ ({_many(count, 'file')})" for top, count in beside.items()]
    # What is odd comes first: it may be a mistake.
    items = sorted([*items, *files], key=lambda item: (not item.endswith(")"), item))
    if items:
        shown = ", ".join(one_line(storable(item)) for item in items[:_SHOWN])
        more = f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
        lines.append(f"ignored: {shown}{more}")
    return lines


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")
