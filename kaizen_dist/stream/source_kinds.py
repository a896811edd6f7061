"""The kinds of sources, chosen by a spec.

    digits                   scikit-learn's handwritten digits, see digits_source.py
    folder:PATH              class folders, in parts or not, see class_folders.py
    domains:PATH             DOMAIN/CLASS/*, likewise
    torchvision:NAME:ROOT    a labelled data set of torchvision, see torchvision_source.py

PATH is a folder, a .tar or a .tar.gz of one.
"""

import re
from pathlib import Path

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.class_folders import open_domains, open_folder
from kaizen_dist.stream.digits_source import open_digits
from kaizen_dist.stream.file_tree import gzip_digest, open_tree
from kaizen_dist.stream.sources import Source
from kaizen_dist.stream.torchvision_source import open_torchvision

_SPECS = {
    "digits": r"digits",
    "folder": r"folder:(.+)",
    "domains": r"domains:(.+)",
    "torchvision": r"torchvision:(\w+):(.+)",
}


def open_source(spec: str, work: Path, progress: bool = True) -> Source:
    """Opens the source a spec names; `work` takes what has to be decompressed.

    Raises UsageError for an unknown spec, DataError for a source that is missing, damaged,
    laid out otherwise, or has a class without images.
    """
    kind, *arguments = _parse(spec)
    if kind == "digits":
        return open_digits(spec)
    if kind == "torchvision":
        name, root = arguments
        return open_torchvision(spec, name, Path(root), progress)
    tree = open_tree(Path(arguments[0]), work, progress)
    return open_folder(spec, tree) if kind == "folder" else open_domains(spec, tree)


def source_stamp(spec: str, source: Source | None = None) -> str | None:
    """A digest in hex by which a later change of the source is noticed: names and sizes of its
    images, or the checksum in a compressed tar. None where there is nothing to compare: for other
    kinds of sources, and for one that is gone.

    `source` is the same, if it is open. Raises DataError as `open_source`.
    """
    kind, *arguments = _parse(spec)
    if kind not in ("folder", "domains") or not (path := Path(arguments[0])).exists():
        return None
    try:
        if path.is_file() and (digest := gzip_digest(path)):
            return digest
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return (source or open_source(spec, path, progress=False)).fingerprint()


def resolve_spec(spec: str) -> str:
    """The spec with its path made absolute, so that one source has one name.

    Raises UsageError for an unknown spec.
    """
    *names, path = _parse(spec)
    return ":".join((*names, str(Path(path).expanduser().absolute()))) if names else spec


def _parse(spec: str) -> tuple[str, ...]:
    """Kind and arguments of a spec."""
    kind = spec.partition(":")[0]
    match = re.fullmatch(_SPECS.get(kind, r"(?!)"), spec, re.DOTALL)
    if match is None:
        raise UsageError(
            f"{spec!r} is no source; give digits, folder:PATH, domains:PATH "
            "or torchvision:NAME:ROOT (e.g. torchvision:CIFAR10:data)"
        )
    return kind, *match.groups()
