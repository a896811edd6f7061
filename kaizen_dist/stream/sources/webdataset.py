"""`webdataset:PATTERN`: tars of samples that exist already, as the library webdataset writes them.

    webdataset:shards/{000..012}.tar               braces and globs, which a shell would expand
    webdataset:shards/*.tar:txt                    labels are KEY.txt, in place of KEY.cls
    webdataset:shards/*.tar:json:FIELD             labels are a field (or FIELD.FIELD) of KEY.json

Members of one tar that are alike up to the first dot of their names are a sample. Its image is the
first member with an image's extension. A sample without a label is unlabelled.
"""

import os
import re
from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from kaizen_dist.common.console import ProgressBar
from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import parse_json
from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files.file_tree import (
    FileTree,
    SourceFiles,
    gzip_digest,
    list_tar,
    storable,
)
from kaizen_dist.stream.files.listing import Faults
from kaizen_dist.stream.files.name_list import NameColumn, NameList, PickedNames
from kaizen_dist.stream.files.patterns import (
    absolute_pattern,
    fixed_folder,
    is_gone,
    matching_files,
)
from kaizen_dist.stream.files.tar_members import TarMembers
from kaizen_dist.stream.images import BadImageError, is_image_name
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.numbers import compact
from kaizen_dist.stream.reader import Identity, identity_of
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind

_LONGEST_LABEL = 1 << 20
_SHOWN = 6
_UNREADABLE = "labels that cannot be read"


class WebdatasetSource(SourceKind):
    """Samples in tars."""

    usage = (
        "webdataset:PATTERN with .cls labels, webdataset:PATTERN:txt or "
        "webdataset:PATTERN:json:FIELD"
    )
    in_tars = True

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:  # noqa: ARG002
        """As `SourceKind.open`."""
        pattern, label = _split(argument)
        root, tars, faults = fixed_folder(pattern), matching_files(pattern), Faults()
        samples = _Samples(root, label, faults)
        with ProgressBar("listing the tars", len(tars), "tars", shown=progress) as bar:
            for path in tars:
                if path.exists():
                    samples.add(path)
                else:
                    faults.add("tars that are not there", str(path))
                bar.advance()
        return samples.source(spec)

    def resolve(self, argument: str) -> str:
        """As `SourceKind.resolve`."""
        pattern, label = _split(argument)
        return absolute_pattern(pattern) + (f":{label}" if label != "cls" else "")

    def stamp(self, spec: str, argument: str, source: Source | None) -> str | None:
        """Of names, labels and sizes; None for tars that are gone."""
        if is_gone(_split(argument)[0]):
            return None
        return (source or self.open(spec, argument, Path(), progress=False)).fingerprint()


class _Samples:
    """The samples of the tars so far."""

    def __init__(self, root: Path, label: str, faults: Faults) -> None:
        self._root, self._faults = root, faults
        self._ending, _, self._field = label.partition(":")
        self._tars: list[str] = []
        self._identities: list[Identity] = []
        self._tar_of, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._names, self._labels = NameList(), NameColumn()
        self._odd: dict[int, str] = {}
        self._ignored = 0
        self._fields: set[str] = set()
        self._beside: Counter[str] = Counter()

    def add(self, path: Path) -> None:
        """Adds the samples of a tar. Raises DataError for one that is damaged."""
        try:
            # Before it is listed: what comes later is a change.
            identity = identity_of(path.stat())
            if gzip_digest(path) is not None:
                raise DataError(f"{path}: is compressed, and is read by position: gunzip it first")
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        tree = list_tar(path, path, progress=False)
        assert tree.offsets is not None
        images, labels = self._members(tree)
        self._tars.append(os.path.relpath(path, self._root))
        self._identities.append(identity)
        self._ignored += len(tree.names) - len(images) - len(labels.keys() & images.keys())
        self._ignored += len(tree.passed_over) + len(tree.closed)
        for key in labels.keys() - images.keys():
            self._faults.add("samples without an image", f"{path.name}/{key}")
        files = tree.images(np.array(list(labels.values()), np.int64))
        place = {key: n for n, key in enumerate(labels)}
        for key, number in images.items():
            label = self._read_label(path, files, place[key]) if key in place else ""
            if label is None:
                continue
            if (name := tree.names[number]) in tree.odd:
                self._odd[len(self._names)] = tree.odd[name]
            self._names.append(name)
            self._labels.append(label)
            self._tar_of.append(len(self._tars) - 1)
            self._offsets.append(int(tree.offsets[number]))
            self._sizes.append(int(tree.sizes[number]))

    def _members(self, tree: FileTree) -> tuple[dict[str, int], dict[str, int]]:
        """The numbers of each key's image and of its label."""
        images: dict[str, int] = {}
        labels: dict[str, int] = {}
        for number, name in enumerate(tree.names):
            folder, _, file = name.rpartition("/")
            stem, _, ending = file.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if ending.lower() == self._ending:
                labels[key] = number
            elif is_image_name(file):
                images.setdefault(key, number)
            else:
                self._beside[ending or file] += 1
        return images, labels

    def _read_label(self, path: Path, files: SourceFiles, number: int) -> str | None:
        """A label, "" if there is none in it; None, noted as a fault, if it cannot be read."""
        assert files.sizes is not None
        try:
            if files.sizes[number] > _LONGEST_LABEL:
                raise ValueError(f"larger than {_LONGEST_LABEL:,} bytes")
            text = files.read(number).decode("utf-8")
            return self._of_json(text) if self._field else text.strip()
        except (ValueError, BadImageError) as error:
            self._faults.add(_UNREADABLE, f"{path.name}/{files.name_of(number)} ({error})")
            return None

    def _of_json(self, text: str) -> str:
        value = parse_json(text)
        if isinstance(value, dict) and len(self._fields) < 100:
            self._fields.update(value)
        for name in self._field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, dict | list):
            raise ValueError(f"its field {self._field} is a {type(value).__name__}")
        return "" if value is None else str(value).strip()

    def source(self, spec: str) -> Source:
        """All samples together. Raises DataError where there are none, or no labels where some
        were asked for."""
        count = len(self._names)
        if not count:
            raise DataError("\n  ".join((f"{spec}: no images in it", *self._faults.lines())))
        classes, labels = self._labels.numbered()
        if not classes and self._ending != "cls":
            fields = f"; there are {', '.join(sorted(self._fields))}" if self._fields else ""
            what = f"field {self._field} in KEY.json" if self._field else "KEY.txt"
            raise DataError(f"{spec}: no sample has a label ({what}){fields}")
        order = compact(np.argsort(labels, kind="stable"))
        place = {int(old): new for new, old in enumerate(order) if int(old) in self._odd}
        sizes = compact(np.array(self._sizes, np.int64)[order])
        beside = ", ".join(f"{n:,} {ending}" for ending, n in sorted(self._beside.items())[:_SHOWN])
        unlabelled = int(np.count_nonzero(labels == UNLABELLED))
        return Source(
            spec=spec,
            classes=[storable(name) for name in classes],
            domains=[],
            labels=labels[order],
            domains_of=np.full(count, NO_DOMAIN),
            is_val=np.zeros(count, bool),
            images=TarMembers(
                self._root,
                self._tars,
                self._identities,
                np.array(self._tar_of, np.int32)[order],
                np.array(self._offsets, np.int64)[order],
                sizes,
                PickedNames(self._names, order),
                {place[old]: why for old, why in self._odd.items()},
            ),
            ignored=self._ignored,
            sizes=sizes,
            told=(
                f"{plural(len(self._tars), 'tar')}, {plural(len(classes), 'class', 'classes')}, "
                f"{plural(count, 'image')}, {unlabelled:,} of them without a label",
                *([f"ignored: {beside}"] if beside else []),
            ),
            faults=self._faults.lines(),
        )


def _split(argument: str) -> tuple[str, str]:
    """The pattern, and where labels are: `cls`, `txt` or `json:FIELD`."""
    found = re.fullmatch(r"(.+?)(?::(cls|txt|json:[^:]+))?", argument, re.DOTALL)
    assert found is not None
    pattern = found[1]
    return pattern, found[2] or "cls"
