"""The original names of a stream's images, so that a person can say which image is meant.

    FOLDER/train.names.jsonl     one JSON string a row of the index, in its order

They are read when somebody asks, never by a training.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import atomic_file, open_to_read
from kaizen_dist.stream.image_name import names_file
from kaizen_dist.stream.manifest_entries import PARTS, Addition, Part, TaskInfo
from kaizen_dist.stream.manifest_schema import StreamManifest
from kaizen_dist.stream.sources.base import Source


def write_names(folder: Path, part: str, names: Iterable[str]) -> str:
    """Writes the names of a part and returns the file's sha256 in hex. Raises WriteError."""
    digest = hashlib.sha256()
    with atomic_file(folder / names_file(part)) as file:
        for name in names:
            line = json.dumps(name).encode() + b"\n"
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def read_names(root: Path, task: TaskInfo, part: Part) -> Iterator[str]:
    """The names of a part, in the order of its index; none in streams of format 1.

    Raises DataError, at the end too: when the file is not the one that was written.
    """
    if task.names_sha256 is None:
        return
    path, digest = root / task.folder / names_file(part), hashlib.sha256()
    try:
        with open_to_read(path) as file:
            for line in file:
                digest.update(line)
                yield str(json.loads(line))
        if digest.hexdigest() != task.names_sha256.get(part):
            raise ValueError("its sha256 is not the one in stream.json")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore it from a copy") from error


def images_there(root: Path, manifest: StreamManifest, source: Source) -> NDArray[np.bool_]:
    """[n] which images of a source the stream in `root` has, by the names of both.

    A stream of format 1 has no names: of its own source all images of its classes count as there.
    Raises DataError.
    """
    there, known = _Digests(), set[str]()
    first = 0
    for addition in manifest.additions:
        if addition.settings.source == source.spec:
            there.add(_names_of(root, manifest, first, addition))
            if manifest.origin and first < manifest.origin.tasks:
                known.update(manifest.origin.classes)
        first += addition.tasks
    old = [label for label, name in enumerate(source.classes) if name in known]
    return there.have(source.name_of(i) for i in range(len(source))) | np.isin(source.labels, old)


def _names_of(
    root: Path, manifest: StreamManifest, first: int, addition: Addition
) -> Iterator[str]:
    yield from (image.name for image in addition.bad)
    for task in manifest.tasks[first : first + addition.tasks]:
        for part in PARTS:
            yield from read_names(root, task, part)


class _Digests:
    """8 bytes a name in place of the name itself: a stream may have millions."""

    def __init__(self) -> None:
        self._found = array("Q")

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            self._found.frombytes(hashlib.blake2b(name.encode(), digest_size=8).digest())

    def have(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """[n] which of the names are among those that were added."""
        asked = _Digests()
        asked.add(names)
        there, own = (np.frombuffer(digests._found, np.uint64) for digests in (self, asked))
        if not len(there):
            return np.zeros(len(own), bool)
        there.sort()
        # A place at a time: np.isin would copy and sort both together.
        return there[np.minimum(np.searchsorted(there, own), len(there) - 1)] == own
