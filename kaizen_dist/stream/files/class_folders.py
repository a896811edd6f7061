"""Class folders as a source: which folder is which part, and which files are its images.

    folder:PATH     train/CLASS/** with val/CLASS/** or test/CLASS/**; or CLASS/** alone
    domains:PATH    DOMAIN/CLASS/**

The parts may be spelled in any case; `val`, `valid` and `validation` mean the same, and beside one
of them `test` is left out. An image is a file with an image's extension, in any case, at any depth
below its class folder. Other files, what folders.py passes over, and files beside the class folders
are ignored, counted and listed for the user. A file of an image's name that cannot be read (a
broken link, a pipe) counts as an image that does not decode. What would lose images that somebody
meant to be used is a fault (`Source.faults`).
"""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files import listing
from kaizen_dist.stream.files.file_tree import FileTree, storable
from kaizen_dist.stream.files.listing import Faults
from kaizen_dist.stream.files.name_list import sort_in_groups
from kaizen_dist.stream.images import is_image_name
from kaizen_dist.stream.numbers import Numbers, compact
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source

TRAIN, VAL, TEST = "training", "validation", "test"
ROLES = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
"""What each part is, by its name in lower case."""
_EMPTY = "class folders without images"


class _Folder(NamedTuple):
    """A class folder in a tree: its part or domain ("" where there are none), and its class."""

    group: str
    class_name: str


class _Found(NamedTuple):
    """The images in a tree, [n] each."""

    numbers: Numbers
    """In the tree."""
    folder_of: NDArray[np.int32]
    """Indices into `folders`."""
    folders: list[_Folder]

    def without(self, folders: Collection[_Folder]) -> "_Found":
        """All images but those of some folders."""
        kept = np.array([folder not in folders for folder in self.folders], bool)[self.folder_of]
        return _Found(self.numbers[kept], self.folder_of[kept], self.folders)

    def sizes(self) -> Counter[str]:
        """How many images each group has."""
        counts: Counter[str] = Counter()
        for folder, count in zip(self.folders, np.bincount(self.folder_of), strict=False):
            counts[folder.group] += int(count)
        return +counts


def read_class_folders(spec: str, tree: FileTree) -> Source:
    """`train/CLASS/**` with `val/CLASS/**` or `test/CLASS/**`, or `CLASS/**`.

    Raises DataError for another layout.
    """
    parts, faults = _parts(tree), Faults()
    train, val, test = (parts.get(role) for role in (TRAIN, VAL, TEST))
    if train is None:
        found = _find(tree, 0, faults)
        _check_top(tree, found)
        return _source(spec, tree, found, {"": False}, {}, faults)
    left_out = {test: f"is left out: {val}/ is the validation part"} if val and test else {}
    val = val or test
    is_val = {train: False} | ({val: True} if val else {})
    found = _find(tree, 1, faults, is_val)
    spelled = _spellings((is_val[folder.group], folder.class_name) for folder in found.folders)
    taught = {spelled[folder.class_name] for folder in found.folders if folder.group == train}
    untaught = [f for f in found.folders if f.group == val and spelled[f.class_name] not in taught]
    for folder in sorted(untaught):
        faults.add(f"class folders of {val}/ without a counterpart in {train}/", "/".join(folder))
    return _source(spec, tree, found.without(untaught), is_val, left_out, faults)


def read_domain_folders(spec: str, tree: FileTree) -> Source:
    """`DOMAIN/CLASS/**`. Raises DataError as `read_class_folders`."""
    faults = Faults()
    return _source(spec, tree, _find(tree, 1, faults), None, {}, faults)


def _parts(tree: FileTree) -> dict[str, str]:
    """The folder of each role that has one: those that hold folders.

    Raises DataError for two with the same role, and for one that cannot be opened.
    """
    parts: dict[str, str] = {}
    above = {folder.split("/")[0] for folder in tree.folders if folder.count("/") == 1}
    for name in sorted(above | {name for name in tree.closed if "/" not in name}):
        role = ROLES.get(name.lower())
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


def _check_top(tree: FileTree, found: _Found) -> None:
    """Raises DataError where parts would be taken for classes: for a folder whose training part
    has another name, and for the folder above the right one."""
    for folder in sorted({folder.class_name for folder in found.folders}):
        below = {
            name.split("/")[1].lower() for name in tree.folders if name.startswith(f"{folder}/")
        }
        if folder.lower() in ROLES and below:
            raise DataError(
                f"{tree.path}: holds {storable(folder)}/ with class folders, but no train/; call "
                f"the training part train, or give folder:{tree.path / storable(folder)}"
            )
        if "train" in below:
            raise DataError(
                f"{tree.path}: {storable(folder)} holds a training part; "
                f"give folder:{tree.path / storable(folder)}"
            )


def _find(
    tree: FileTree, depth: int, faults: Faults, groups: Collection[str] | None = None
) -> _Found:
    """All images below `CLASS/` (depth 0), or below `GROUP/CLASS/` (depth 1) of these groups
    (None: all). Raises DataError where there are none."""

    def is_used(parts: Sequence[str]) -> bool:
        return depth == 0 or groups is None or parts[0] in groups

    folder_of = array("i")  # of every file, -1 for none
    number_of: dict[_Folder, int] = {}
    for name in tree.names:
        *above, file = name.split("/", depth + 1)
        if len(above) == depth + 1 and is_used(above) and is_image_name(file.rpartition("/")[2]):
            folder = _Folder(above[0] if depth else "", above[-1])
            folder_of.append(number_of.setdefault(folder, len(number_of)))
        else:
            folder_of.append(-1)
    for name in sorted(tree.folders | tree.closed.keys()):
        parts = name.split("/")
        if not is_used(parts):
            continue
        if name in tree.closed:
            faults.add(listing.CLOSED, f"{name} {tree.closed[name]}")
        elif (
            len(parts) == depth + 1
            and _Folder(parts[0] if depth else "", parts[-1]) not in number_of
        ):
            faults.add(_EMPTY, name)
    if not number_of:
        raise listing.nothing(tree, "no class folders with images in it", faults)
    of_file = np.frombuffer(folder_of, np.int32)
    numbers = compact(np.flatnonzero(of_file >= 0))
    return _Found(numbers, of_file[numbers], list(number_of))


def _source(
    spec: str,
    tree: FileTree,
    found: _Found,
    is_val_part: dict[str, bool] | None,
    left_out: dict[str, str],
    faults: Faults,
) -> Source:
    """Numbers the images; the groups are parts, or domains where `is_val_part` is None."""
    used = sorted({found.folders[n] for n in np.unique(found.folder_of)})
    domains = sorted({folder.group for folder in used}) if is_val_part is None else []
    is_val = is_val_part or dict.fromkeys(domains, False)
    spelled = _spellings((is_val[folder.group], folder.class_name) for folder in used)
    classes = sorted(set(spelled.values()))
    used.sort(key=lambda f: (is_val[f.group], spelled[f.class_name], f.group, f.class_name))
    chosen, folder_of = _in_order(tree, found, used)
    label_of = {name: label for label, name in enumerate(classes)}
    domain_of = {name: number for number, name in enumerate(domains)}
    aside = len(tree.names) - len(chosen) + len(tree.passed_over) + len(tree.closed)
    groups = {folder.group for folder in used} - {""}
    return Source(
        spec=spec,
        classes=[storable(name) for name in classes],
        domains=[storable(name) for name in domains],
        labels=compact(np.array([label_of[spelled[f.class_name]] for f in used]))[folder_of],
        domains_of=compact(np.array([domain_of.get(f.group, NO_DOMAIN) for f in used]))[folder_of],
        is_val=np.array([is_val[folder.group] for folder in used])[folder_of],
        images=tree.images(chosen),
        ignored=aside,
        sizes=tree.sizes[chosen],
        told=(
            *_used(found.sizes(), is_val_part, len(classes)),
            *listing.unused(tree, chosen, groups, left_out),
        ),
        faults=faults.lines(),
    )


def _in_order(
    tree: FileTree, found: _Found, folders: Sequence[_Folder]
) -> tuple[Numbers, NDArray[np.int32]]:
    """[n] the images' numbers in the tree, by folder and name, and [n] their folders' numbers."""
    rank = {folder: number for number, folder in enumerate(folders)}
    own = np.array([rank.get(f, 0) for f in found.folders], np.int32)[found.folder_of]
    order = sort_in_groups(own, lambda n: tree.names[found.numbers[n]])
    return found.numbers[order], own[order]


def _spellings(names: Iterable[tuple[bool, str]]) -> dict[str, str]:
    """One spelling of each class: an accent may be part of its letter or follow it, depending on
    the system that wrote the folder. That of the training part counts."""
    by_letters: dict[str, str] = {}
    spelled = {}
    for _, name in sorted(set(names)):
        spelled[name] = by_letters.setdefault(unicodedata.normalize("NFC", name), name)
    return spelled


# ---- what the user is told --------------------------------------------------------------


def _used(sizes: Counter[str], is_val: dict[str, bool] | None, classes: int) -> list[str]:
    """A line on each part: what it was taken for."""
    images = plural(sizes.total(), "image")
    if is_val is None:
        return [f"{plural(len(sizes), 'domain')}, {plural(classes, 'class', 'classes')}, {images}"]
    if "" in is_val:
        return [f"{plural(classes, 'class', 'classes')}, {images}, no validation part"]
    return [
        f"{part}/ is the {VAL if of_val else TRAIN} part: {plural(sizes[part], 'image')}"
        for part, of_val in is_val.items()
    ]
