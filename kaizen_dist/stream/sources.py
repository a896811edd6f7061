"""Sources: where labelled images come from, before they are a stream.

In comes a spec, out comes a `Source`: names of classes and domains, a label for every image,
and by number its encoded bytes.

    digits                   scikit-learn's 1,797 handwritten digits of 8x8, embedded
    folder:PATH              class folders, in parts or not, see class_folders.py
    domains:PATH             DOMAIN/CLASS/*, likewise
    torchvision:NAME:ROOT    a labelled data set of torchvision, see torchvision_source.py

PATH is a folder, a .tar or a .tar.gz of one. A new source is one function that returns a
`Source`, and its line in `open_source`.
"""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.listing import digest_of_gzip, is_compressed, open_tree
from kaizen_dist.stream.trees import Images

NO_DOMAIN = -1


@dataclass(frozen=True)
class Source:
    """Labelled images, numbered by (part, class, name) with the training part first; `[n]` all
    images. Picklable, to be read from worker processes."""

    spec: str
    classes: list[str]
    domains: list[str]
    """Empty where the source knows no domains."""
    labels: NDArray[np.int64]
    """[n] indices into `classes`."""
    domains_of: NDArray[np.int64]
    """[n] indices into `domains`, or -1."""
    is_val: NDArray[np.bool_]
    """[n] which images belong to the source's own validation part."""
    images: Images
    ignored: int = 0
    """Files passed over because they are no images, or lie outside the class folders."""
    sizes: NDArray[np.int64] | None = None
    """[n] bytes of every image, where the source keeps files."""
    told: tuple[str, ...] = ()
    """Lines for the user: what was taken for what, and what was left out."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_val(self) -> bool:
        """Whether the source has a validation part of its own."""
        return bool(self.is_val.any())

    def read(self, i: int) -> bytes:
        """The encoded bytes of image `i`. Raises DataError naming it."""
        return self.images.read(i)

    def name_of(self, i: int) -> str:
        """What the source calls image `i`."""
        return self.images.name_of(i)

    def fingerprint(self) -> str:
        """A digest in hex by which a changed source is noticed: names, labels and sizes."""
        digest = hashlib.sha256(repr((self.spec, self.classes, self.domains)).encode())
        for array in (self.labels, self.domains_of, self.is_val, self.sizes):
            digest.update(b"" if array is None else array.tobytes())
        for i in range(len(self)):
            digest.update(self.name_of(i).encode() + b"\0")
        return digest.hexdigest()


def open_source(spec: str, work: Path, progress: bool = True) -> Source:
    """Opens the source a spec names; `work` takes what has to be decompressed.

    Raises UsageError for a spec that is none, DataError for a source that is missing, damaged,
    laid out otherwise, or has a class without images.
    """
    kind, rest = _parse(spec)
    if kind == "digits":
        return _digits(spec)
    if kind == "torchvision":
        from kaizen_dist.stream.torchvision_source import open_torchvision

        name, root = rest
        return open_torchvision(spec, name, Path(root), progress)
    from kaizen_dist.stream.class_folders import of_domains, of_folder

    tree = open_tree(Path(rest[0]), work, progress)
    return of_folder(spec, tree) if kind == "folder" else of_domains(spec, tree)


def stamp(spec: str, source: Source | None = None) -> str | None:
    """A digest in hex by which it is noticed, long after, that a source has changed: names and
    sizes of its images, or the checksum in a compressed tar. None where there is nothing to
    compare: for other kinds of sources, and for one that is gone.

    `source` is the same, if it is open. Raises DataError as `open_source`.
    """
    kind, rest = _parse(spec)
    if kind not in ("folder", "domains") or not (path := Path(rest[0])).exists():
        return None
    try:
        if path.is_file() and is_compressed(path):
            return digest_of_gzip(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return (source or open_source(spec, path, progress=False)).fingerprint()


def resolve_spec(spec: str) -> str:
    """The spec with its path made absolute, so that one source has one name.

    Raises UsageError for a spec that is none.
    """
    kind, rest = _parse(spec)
    if rest:
        *names, path = rest
        rest = (*names, str(Path(path).expanduser().absolute()))
    return ":".join((kind, *rest))


_SPECS = {
    "digits": r"",
    "folder": r":(.+)",
    "domains": r":(.+)",
    "torchvision": r":(\w+):(.+)",
}


def _parse(spec: str) -> tuple[str, tuple[str, ...]]:
    kind = spec.partition(":")[0]
    match = re.fullmatch(kind + _SPECS[kind], spec, re.DOTALL) if kind in _SPECS else None
    if match is None:
        raise UsageError(
            f"{spec!r} is no source; give digits, folder:PATH, domains:PATH "
            "or torchvision:NAME:ROOT (e.g. torchvision:CIFAR10:data)"
        )
    return kind, match.groups()


# ---- the embedded digits ----------------------------------------------------------------


@dataclass(frozen=True)
class _Pictures:
    """Grey images [n, height, width] of uint8 in memory, encoded losslessly when read."""

    pixels: NDArray[np.uint8]
    names: Sequence[str]

    def read(self, i: int) -> bytes:
        return encode_png(Image.fromarray(self.pixels[i]))

    def name_of(self, i: int) -> str:
        return self.names[i]


def encode_png(image: Image.Image) -> bytes:
    """An image as PNG, without loss."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _digits(spec: str) -> Source:
    """UCI's optical recognition of handwritten digits, test part: 8x8, grey levels 0 to 16."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.argsort(digits.target, kind="stable")
    pixels = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order].astype(np.int64)
    count = len(labels)
    return Source(
        spec=spec,
        classes=[str(name) for name in digits.target_names],
        domains=[],
        labels=labels,
        domains_of=np.full(count, NO_DOMAIN),
        is_val=np.zeros(count, bool),
        images=_Pictures(pixels, [f"digit {i}" for i in order]),
    )
