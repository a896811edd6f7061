"""Sources: where labelled images come from, before they are a stream.

In comes a spec, out comes a `Source`: names of classes and domains, a label for every image,
and by number its encoded bytes.

    digits                   scikit-learn's 1,797 handwritten digits of 8x8, embedded
    folder:PATH              train/CLASS/*, test/CLASS/* or val/CLASS/*; or CLASS/* alone
    domains:PATH             DOMAIN/CLASS/*
    torchvision:NAME:ROOT    a labelled data set of torchvision, see torchvision_source.py

PATH is a folder, a .tar or a .tar.gz of one. An image is a file whose ending says so, in
either case (jpg, jpeg, png, webp, bmp, gif, tif, tiff, ppm, pgm). Files that are no images,
hidden ones (`.name`), and whatever lies beside the class folders are passed over and counted
in `Source.ignored`; images in folders below a class folder are an error, because they would
be missed.

A new source is one function that returns a `Source`, and its line in `open_source`.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kaizen_dist.errors import DataError, UsageError
from kaizen_dist.stream.images import is_image_name
from kaizen_dist.stream.trees import Images, Tree, open_tree, printable

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
    tree = open_tree(Path(rest[0]), work, progress)
    return _of_folder(spec, tree) if kind == "folder" else _of_domains(spec, tree)


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


# ---- class folders ----------------------------------------------------------------------


class _Found(NamedTuple):
    """An image in a tree: its number there, and the folders it lies in."""

    number: int
    group: str
    class_name: str
    name: str


def _of_folder(spec: str, tree: Tree) -> Source:
    """`train/CLASS/*` with `test|val/CLASS/*`, or `CLASS/*`."""
    parts = [part for part in ("train", "test", "val") if _holds_folders(tree, part)]
    if "train" not in parts:
        return _source(spec, tree, _find(tree, lambda path: ("", path)), {"": False})
    if len(parts) == 3:
        raise DataError(
            f"{tree.path}: holds both test/ and val/; leave the one to validate on, or rename it"
        )
    is_val = {part: part != "train" for part in parts}
    found = _find(tree, lambda path: (path[0], path[1:]) if path[0] in is_val else None)
    source = _source(spec, tree, found, is_val)
    taught = set(source.labels[~source.is_val])
    for label in np.unique(source.labels[source.is_val]):
        if label not in taught:
            name = source.classes[label]
            raise DataError(f"{tree.path}: {parts[1]}/{name} has no counterpart train/{name}")
    return source


def _of_domains(spec: str, tree: Tree) -> Source:
    """`DOMAIN/CLASS/*`."""
    found = _find(tree, lambda path: (path[0], path[1:]))
    return _source(spec, tree, found, None)


def _holds_folders(tree: Tree, name: str) -> bool:
    return any(folder.startswith(f"{name}/") and folder.count("/") == 1 for folder in tree.folders)


Place = Callable[[list[str]], tuple[str, list[str]] | None]
"""Parts a path into its group (part or domain) and the rest; None: of no interest."""


def _find(tree: Tree, place: Place) -> list[_Found]:
    """All images at `CLASS/NAME` of their group.

    Raises DataError for a class folder without images and for images below a class folder.
    """
    found, filled = [], set()
    for number, name in enumerate(tree.names):
        placed = place(name.split("/")) if is_image_name(name.rpartition("/")[2]) else None
        if placed is None or _is_hidden(name):
            continue
        group, rest = placed
        if len(rest) > 2:
            raise DataError(
                f"{tree.path}: {printable(name)} lies below a class folder; images are read from "
                "CLASS/* only: move them up, or give the folder that holds the class folders"
            )
        if len(rest) == 2:
            found.append(_Found(number, group, *rest))
            filled.add((group, rest[0]))
    for folder in sorted(tree.folders):
        placed = None if _is_hidden(folder) else place(folder.split("/"))
        if placed is not None and len(placed[1]) == 1 and (placed[0], placed[1][0]) not in filled:
            raise DataError(
                f"{tree.path}: the class folder {printable(folder)} has no images; "
                "remove it or fill it"
            )
    if not found:
        raise DataError(f"{tree.path}: no class folders with images in it")
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _source(
    spec: str, tree: Tree, found: list[_Found], is_val_part: dict[str, bool] | None
) -> Source:
    """Numbers the images; the groups are parts, or domains where `is_val_part` is None."""
    classes = sorted({image.class_name for image in found})
    domains = sorted({image.group for image in found}) if is_val_part is None else []
    is_val = is_val_part or dict.fromkeys(domains, False)
    found = sorted(found, key=lambda f: (is_val[f.group], f.class_name, f.group, f.name))
    label_of = {name: label for label, name in enumerate(classes)}
    domain_of = {name: number for number, name in enumerate(domains)}
    chosen = np.array([image.number for image in found])
    return Source(
        spec=spec,
        classes=[printable(name) for name in classes],
        domains=[printable(name) for name in domains],
        labels=np.array([label_of[image.class_name] for image in found]),
        domains_of=np.array([domain_of.get(image.group, NO_DOMAIN) for image in found]),
        is_val=np.array([is_val[image.group] for image in found]),
        images=tree.images(chosen),
        ignored=len(tree.names) - len(found),
        sizes=tree.sizes[chosen],
    )
